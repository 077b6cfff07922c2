"""Scores of whole images of any size: several scales, mirrored views, sliding windows.

Reproduces the evaluation of the published code on ADE20K (`PUBLISHED`), whose rules are:

- at each scale s the long side becomes ceil(base * s) pixels and the other one int(x + 0.5),
  bilinearly, corners on corners, on the normalised image;
- windows of `window_px` start every `stride_px` pixels, from the upper left; what reaches beyond
  the image is black (-mean/std); an image within one window is scored in that alone;
- the logits of a window and of its mirror image are added; where windows overlap, the mean counts;
- the map of each scale is resized to the image, corners on corners, and all maps are added.

Where each label's score is a logit of its own (`Network.scores_apart`: cost aggregation), means are
those of probabilities, as CAT-Seg takes them, and come back as logits: a window in which a label is
no candidate so halves its probability, where a mean of logits would end it.

All but the network is linear, so here the sums are made of the network's half-resolution scores,
some rows of the image at a time, and a map of all labels never has to exist whole. Windows are
scored in batches, from the top down, and forgotten once the rows below no longer touch them.

Shapes: B images of one size, K labels, C embedding, H W image, R rows of a band, h w half of a
window.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from model.errors import ModelError
from model.network import Network, Trunk
from model.prediction import NO_LABEL
from model.upsampling import source_rows, upsample_rows

BAND_MIB_CPU, BAND_MIB_GPU = 32, 512
"""Size of the float32 scores of one band of rows."""

WINDOWS_CPU, WINDOWS_GPU = 4, 32
"""Windows that go through the network together."""

SCORES_MIB = 2048
"""Labels are scored some at a time when the scores of all windows at hand would exceed this."""


@dataclass(frozen=True, kw_only=True)
class SlidingConfig:
    """How an image is divided into windows and scales before it is scored."""

    scales: tuple[float, ...] = (1.0,)
    """Sizes of the image relative to `base_px`; their scores are added."""

    flip: bool = False
    """Score the mirrored image too."""

    base_px: int | None = 520
    """Long side of the image at scale 1; null: its own size."""

    window_px: int | None = 480
    """Side of the square windows; null: the whole image at once."""

    stride_px: int | None = None
    """From one window to the next; null: two thirds of the window."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ModelError(
                f"scales={list(self.scales)}: must be one or more numbers above 0, up to 16: "
                "1.0 is the size that base_px says"
            )
        for name in ("base_px", "window_px", "stride_px"):
            value = getattr(self, name)
            if value is not None and value < 8:
                raise ModelError(f"{name}={value}: must be at least 8 pixels, or null")
        if self.window_px is None and self.stride_px is not None:
            raise ModelError(
                f"stride_px={self.stride_px}: has no meaning without windows: set window_px too"
            )
        if self.window_px is not None and self.stride > self.window_px:
            raise ModelError(
                f"stride_px={self.stride_px}: must not exceed window_px={self.window_px}, or "
                "pixels between the windows are never seen"
            )

    @property
    def stride(self) -> int:
        """From one window to the next, in pixels."""
        assert self.window_px is not None
        return self.stride_px or int(self.window_px * (2.0 / 3.0))

    @property
    def num_views(self) -> int:
        """How many scores are added in each pixel; the sums over this are mean logits."""
        return len(self.scales) * (1 + self.flip)


SINGLE_SCALE = SlidingConfig()
"""Windows at one scale, not mirrored: a tenth of the cost of `PUBLISHED`."""

PUBLISHED = SlidingConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
"""The protocol behind the published figures on ADE20K."""

WHOLE = SlidingConfig(window_px=None)
"""The whole image in one forward pass."""

AS_IT_IS = SlidingConfig(window_px=None, base_px=None)
"""The whole image in one forward pass, at its own size."""


@dataclass(frozen=True)
class Grid:
    """Where the windows of one scale lie."""

    height: int
    """Height of the scaled image."""
    width: int
    window: tuple[int, int]
    """Height and width of every window."""
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, int]:
        """The size that all windows together cover."""
        return self.tops[-1] + self.window[0], self.lefts[-1] + self.window[1]


def window_grid(size: tuple[int, int], scale: float, config: SlidingConfig) -> Grid:
    """The scaled size of an image (height, width), and its windows."""
    height, width = size
    long = math.ceil((config.base_px or max(size)) * scale)
    # A side below half a pixel is where the published rule fails; here it keeps one pixel.
    if height > width:
        height, width = long, max(1, int(1.0 * width * long / height + 0.5))
    else:
        height, width = max(1, int(1.0 * height * long / width + 0.5)), long
    window = config.window_px
    if window is None:
        return Grid(height, width, (height, width), (0,), (0,))
    tops, lefts = (
        tuple(range(0, max(0, side - window) + config.stride, config.stride))
        for side in (height, width)
    )
    return Grid(height, width, (window, window), tops, lefts)


class Views:
    """The views of some images of one size, to be scored against labels.

    Args:
        network: the network, in evaluation mode.
        image_BCHW: (B, 3, H, W) float, normalised, on the network's device.
        config: how to look at them.
        size: (H, W) of the results; None: that of the images.
        keep: keep what does not depend on the labels (at stride 4), for further labels.
    """

    def __init__(
        self,
        network: Network,
        image_BCHW: Tensor,
        config: SlidingConfig,
        size: tuple[int, int] | None = None,
        keep: bool = False,
    ) -> None:
        own_size = (image_BCHW.shape[2], image_BCHW.shape[3])
        self.size = size or own_size
        self._num_images = len(image_BCHW)
        grids = [window_grid(own_size, scale, config) for scale in config.scales]
        several = config.num_views > 1 or any(len(g.tops) * len(g.lefts) > 1 for g in grids)
        self._num_views, self._apart = config.num_views, several and network.scores_apart
        self._scales = [
            _ScaledView(network, image_BCHW, grid, config.flip, keep, self._apart) for grid in grids
        ]

    @property
    def mib_per_label(self) -> float:
        """Memory of the scores of one label in all windows that are held at once."""
        numbers = sum(view.held_scores for view in self._scales)
        return self._num_images * numbers * 4 / 2**20

    @torch.no_grad()
    def bands(self, text_KC: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Scores the images from the top down.

        Args:
            text_KC: (K, C), or (B, K, C) where every image has labels of its own.

        Yields:
            The rows of a band, and its summed logits (B, K, R, W) float32, which over the number of
            views are the mean. All rows come, in order.
        """
        height, width = self.size
        num_labels = text_KC.shape[-2]
        widest = max(width, *(view.grid.width for view in self._scales))
        mib = BAND_MIB_GPU if text_KC.is_cuda else BAND_MIB_CPU
        rows = max(1, int(mib * 2**20 / (4 * self._num_images * num_labels * widest)))
        for view in self._scales:
            view.ask(text_KC)
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            parts = [view.resized_rows(start, stop, self.size) for view in self._scales]
            total = parts[0]
            for part in parts[1:]:
                total += part
            if self._apart:
                total = self._num_views * _logits_of(total / self._num_views)
            yield slice(start, stop), total


@torch.no_grad()
def sliding_logits(
    network: Network,
    image_BCHW: Tensor,
    text_KC: Tensor,
    config: SlidingConfig,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Scores whole images.

    Args:
        network: the network, in evaluation mode.
        image_BCHW: (B, 3, H, W) float, normalised, on the network's device.
        text_KC: (K, C), or (B, K, C) where every image has labels of its own.
        config: how to look at the images.
        size: (H, W) of the result; None: that of the images.

    Returns:
        (B, K, H, W) float32: logits summed over scales and mirror images.
    """
    views = Views(network, image_BCHW, config, size)
    shape = (len(image_BCHW), text_KC.shape[-2], *views.size)
    logits = torch.empty(shape, device=image_BCHW.device)
    for rows, band in views.bands(text_KC):
        logits[:, :, rows] = band
    return logits


@torch.no_grad()
def sliding_label_ids(
    network: Network,
    image_BCHW: Tensor,
    text_KC: Tensor,
    config: SlidingConfig,
    size: tuple[int, int] | None = None,
    threshold: float | None = None,
) -> Tensor:
    """Takes the best label of each pixel, with memory that depends little on sizes and K.

    The arguments are those of `sliding_logits`, and `threshold`: pixels whose best label has a
    smaller probability (see `model.prediction.probabilities`) get `NO_LABEL`.

    Returns:
        (B, H, W) int64, 0..K-1 or `NO_LABEL`, on the network's device.
    """
    num_labels = text_KC.shape[-2]
    views = Views(network, image_BCHW, config, size)
    chunk = max(1, int(SCORES_MIB / views.mib_per_label))
    if network.couples_labels:
        chunk = num_labels
    if chunk < num_labels:
        views = Views(network, image_BCHW, config, size, keep=True)
    competing = threshold is not None and not network.scores_apart
    best = _Best(len(image_BCHW), views.size, image_BCHW.device, competing)
    for first in range(0, num_labels, chunk):
        for rows, band in views.bands(text_KC[..., first : first + chunk, :]):
            best.add(rows, band / config.num_views, first)
    return (
        best.ids if threshold is None else best.ids.where(best.probability >= threshold, NO_LABEL)
    )


class _Best:
    """The best label so far of each pixel, over bands of rows and chunks of labels."""

    def __init__(
        self, num_images: int, size: tuple[int, int], device: torch.device, competing: bool
    ) -> None:
        shape = (num_images, *size)
        self.ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._score = torch.full(shape, -torch.inf, device=device)
        self._log_sum = self._score.clone() if competing else None

    def add(self, rows: slice, logits_BKRW: Tensor, first: int) -> None:
        """Takes the scores of labels `first`, ... in some rows."""
        score, ids = logits_BKRW.max(1)
        better = score > self._score[:, rows]
        self.ids[:, rows] = torch.where(better, ids + first, self.ids[:, rows])
        self._score[:, rows] = torch.where(better, score, self._score[:, rows])
        if self._log_sum is not None:
            before = self._log_sum[:, rows]
            self._log_sum[:, rows] = torch.logaddexp(before, logits_BKRW.logsumexp(1))

    @property
    def probability(self) -> Tensor:
        """The best label's probability: (B, H, W); its own alone where labels do not compete."""
        if self._log_sum is None:
            return self._score.sigmoid()
        return (self._score - self._log_sum).exp()


def _logits_of(probability: Tensor) -> Tensor:
    """The logits of probabilities, which are finite for 0 and 1 too."""
    least, most = 1e-37, 1 - 2**-24
    return probability.clamp_min(least).log() - (-probability.clamp_max(most)).log1p()


class _ScaledView:
    """The images at one scale, with `apart` as probabilities."""

    def __init__(
        self,
        network: Network,
        image_BCHW: Tensor,
        grid: Grid,
        flip: bool,
        keep: bool,
        apart: bool = False,
    ) -> None:
        self.grid = grid
        self._network, self._image_BCHW = network, image_BCHW
        self._flip, self._apart = flip, apart
        self._text_KC: Tensor | None = None
        self._window_rows: dict[int, Tensor] = {}
        """Row of the grid -> (columns, B, K, h, w), mirror images added."""
        self._trunks: dict[tuple[int, int], Trunk] | None = {} if keep else None

    @cached_property
    def _black_BCHW(self) -> Tensor:
        """The scaled images on black, as large as all windows together."""
        grid = self.grid
        image = self._image_BCHW
        if image.shape[2:] != (grid.height, grid.width):
            image = functional.interpolate(
                image, (grid.height, grid.width), mode="bilinear", align_corners=True
            )
        if grid.padded == (grid.height, grid.width):
            return image
        black = -self._network.mean_C / self._network.std_C
        padded = black[:, None, None].expand(len(image), -1, *grid.padded).to(image).clone()
        padded[:, :, : grid.height, : grid.width] = image
        return padded

    @cached_property
    def _count_RC(self) -> Tensor:
        """How many windows cover each pixel: (height, width) float32."""

        def along(side: int, starts: tuple[int, ...], window: int) -> Tensor:
            count = torch.zeros(side)
            for start in starts:
                count[start : start + window] += 1
            return count

        rows = along(self.grid.height, self.grid.tops, self.grid.window[0])
        columns = along(self.grid.width, self.grid.lefts, self.grid.window[1])
        return (rows[:, None] * columns).to(self._image_BCHW.device)

    @property
    def _places_at_once(self) -> int:
        """Windows of each image that go through the network together."""
        most = WINDOWS_GPU if self._image_BCHW.is_cuda else WINDOWS_CPU
        return max(1, most // (len(self._image_BCHW) * (1 + self._flip)))

    @property
    def _rows_at_once(self) -> int:
        """Rows of the grid that are scored together, to fill a batch."""
        return max(1, self._places_at_once // len(self.grid.lefts))

    @property
    def held_scores(self) -> int:
        """Scores of one label and image in the windows that are held at once."""
        grid = self.grid
        apart = grid.tops[1] if len(grid.tops) > 1 else grid.window[0]
        rows = min(len(grid.tops), math.ceil(grid.window[0] / apart) + self._rows_at_once)
        half = -(-grid.window[0] // 2) * -(-grid.window[1] // 2)
        return rows * len(grid.lefts) * half

    def ask(self, text_KC: Tensor) -> None:
        """Sets the labels, and starts again from the top."""
        self._text_KC = text_KC
        self._window_rows.clear()

    def resized_rows(self, start: int, stop: int, size: tuple[int, int]) -> Tensor:
        """Rows start..stop of this scale's map, resized to `size`: (B, K, R, W)."""
        as_it_is = size == (self.grid.height, self.grid.width)
        span = slice(start, stop)
        if not as_it_is:
            span = source_rows(start, stop, self.grid.height, size[0])
        for row in [row for row, top in enumerate(self.grid.tops) if self._ends(top) <= span.start]:
            self._window_rows.pop(row, None)
        scaled = self._scaled_rows(span.start, span.stop)
        if as_it_is:
            return scaled
        return upsample_rows(scaled, span.start, (start, stop), self.grid.height, size)

    def _ends(self, top: int) -> int:
        return top + self.grid.window[0]

    def _scaled_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop at this scale, the mean of all windows: (B, K, stop - start, width)."""
        grid = self.grid
        total: Tensor | None = None
        for row, top in enumerate(grid.tops):
            first, last = max(start, top), min(stop, self._ends(top))
            if first >= last:
                continue
            scores = self._row(row)  # (columns, B, K, h, w)
            inner = (first - top, last - top)
            span = source_rows(*inner, scores.shape[3], grid.window[0])
            flat = scores.flatten(0, 1)[:, :, span]
            pieces = upsample_rows(flat, span.start, inner, scores.shape[3], grid.window)
            if len(grid.tops) == len(grid.lefts) == 1:
                return pieces[..., : grid.width]
            pieces = pieces.unflatten(0, scores.shape[:2])
            if total is None:
                total = pieces.new_zeros((*scores.shape[1:3], stop - start, grid.width))
            for left, piece in zip(grid.lefts, pieces, strict=True):
                right = min(left + grid.window[1], grid.width)
                total[:, :, first - start : last - start, left:right] += piece[..., : right - left]
        assert total is not None
        return total.div_(self._count_RC[start:stop])

    def _row(self, row: int) -> Tensor:
        """The scores of one row of windows: (columns, B, K, h, w)."""
        if row not in self._window_rows:
            rows = range(row, min(row + self._rows_at_once, len(self.grid.tops)))
            self._window_rows.update(zip(rows, self._score_rows(rows), strict=True))
        return self._window_rows[row]

    def _score_rows(self, rows: range) -> list[Tensor]:
        places = [(row, column) for row in rows for column in range(len(self.grid.lefts))]
        together = self._places_at_once
        batches = [places[first : first + together] for first in range(0, len(places), together)]
        scores = torch.cat([self._score(batch) for batch in batches])
        return list(scores.unflatten(0, (len(rows), len(self.grid.lefts))))

    def _score(self, places: list[tuple[int, int]]) -> Tensor:
        """Some windows in one batch: (len(places), B, K, h, w), mirror images added."""
        text = self._text_KC
        assert text is not None
        first, num_images = places[0], len(self._image_BCHW)
        trunk = self._trunks.get(first) if self._trunks is not None else None
        if trunk is None:
            trunk = self._network.trunk(self._windows(places))
            if self._trunks is not None:
                self._trunks[first] = trunk
        if text.ndim == 3:
            text = text.repeat(len(trunk.features_BFhw) // num_images, 1, 1)
        scores = self._network.score_trunk(trunk, text)
        if self._apart:
            scores = scores.sigmoid()
        scores = scores.unflatten(0, (-1, len(places), num_images))
        return scores[0] + scores[1].flip(-1) if self._flip else scores[0]

    def _windows(self, places: list[tuple[int, int]]) -> Tensor:
        """(V * len(places) * B, 3, window), the V = 2 mirror images behind the others."""
        high, wide = self.grid.window
        corners = [(self.grid.tops[row], self.grid.lefts[column]) for row, column in places]
        windows = torch.cat(
            [self._black_BCHW[:, :, y : y + high, x : x + wide] for y, x in corners]
        )
        return torch.cat([windows, windows.flip(-1)]) if self._flip else windows
