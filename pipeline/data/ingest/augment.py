"""From the bytes of a stored sample to one uint8 crop: decode, scale, crop, flip, jitter.

LSeg's augmentation: the long side is drawn uniformly from `scale * base_px`, the image is padded
at the right and bottom when it is smaller than the crop, a window is cut at a uniform position, and
flipped with probability one half. Only the source box of that window is resized, which gives the
same distribution of crops at a fraction of the work: by a power of two while decoding, as long as
the image stays at least as fine as the crop, and bilinearly from there, so that no source pixel
is skipped.
"""

import threading
from dataclasses import dataclass, field

import cv2
import numpy as np

from pipeline.data.pixels.checks import MAX_SIDE_PX
from pipeline.data.pixels.decode import decode_jpeg, decode_label
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in brightness (ITU-R BT.601)."""
_MAX_SHRINK = 8
"""Least size at which a JPEG can be decoded, as a fraction 1/n of its side."""


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Random changes of colour; each is drawn uniformly around "no change". 0 turns one off."""

    brightness: float = 0.0
    """Largest change of brightness: values are multiplied by 1 +- this."""
    contrast: float = 0.0
    """Largest change of contrast: distances from the crop's mean grey times 1 +- this."""
    saturation: float = 0.0
    """Largest change of saturation: distances from each pixel's grey times 1 +- this."""
    hue: float = 0.0
    """Largest turn of the hue, as a share of the colour circle, to either side."""

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(
                    f"data.augment.jitter.{name}={getattr(self, name)}: must lie between 0 and "
                    f"{most}; 0 turns it off"
                )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training crop is cut from an image."""

    crop_px: int = 480
    """Side of the square crop, in pixels."""
    base_px: int = 520
    """Long side of an image at scale 1, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale, relative to `base_px`."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    squash: bool = False
    """Squeeze the whole image to the crop's square, instead of a crop at a random scale:
    the zero-shot protocol's way. `base_px`, `scale` and `grid_px` are not used then."""
    grid_px: int = 1
    """Corners of crops lie on a grid of this many source pixels; 1 is any position."""
    jitter: JitterConfig = field(default_factory=JitterConfig)
    """Random changes of colour; LSeg as published makes none."""

    def __post_init__(self) -> None:
        for name, least in (("crop_px", 16), ("base_px", 16), ("grid_px", 1)):
            if not least <= getattr(self, name) <= MAX_SIDE_PX:
                raise UserError(
                    f"data.augment.{name}={getattr(self, name)}: must be {least} to {MAX_SIDE_PX} "
                    "pixels"
                )
        low, high = self.scale
        if not 0 < low <= high < float("inf"):
            raise UserError(
                f"data.augment.scale={list(self.scale)}: must be two numbers with 0 < low <= high, "
                "such as [0.5, 2.0]"
            )
        if not 0 <= self.flip_probability <= 1:
            raise UserError(
                f"data.augment.flip_probability={self.flip_probability}: must lie between 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class Window:
    """The random choices of one crop; sizes and places in pixels of the stored image."""

    top: int
    left: int
    height: int
    width: int
    shrink: int
    """Power of two by which the image is shrunk first; it divides the four numbers above."""
    out_height: int
    """Pixels of the crop, without its padding."""
    out_width: int
    flip: bool
    colour: tuple[float, float, float, float] | None
    """Factors of brightness, contrast and saturation, and turn of the hue in radians."""


def draw_window(height: int, width: int, seed: int, config: AugmentConfig) -> Window:
    """Draws the crop of one row of the stream; a pure function of its arguments.

    Height and width are pixels of the stored image; the row's seed has 64 bits.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if config.squash:
        flip = bool(rng.random() < config.flip_probability)
        colour = _draw_colour(rng, config.jitter)
        return Window(0, 0, height, width, 1, config.crop_px, config.crop_px, flip, colour)
    low, high = (round(config.base_px * s) for s in config.scale)
    zoom = rng.integers(low, high, endpoint=True) / max(height, width)
    box_h = min(height, max(1, round(config.crop_px / zoom)))
    box_w = min(width, max(1, round(config.crop_px / zoom)))
    top = config.grid_px * int(rng.integers(0, (height - box_h) // config.grid_px, endpoint=True))
    left = config.grid_px * int(rng.integers(0, (width - box_w) // config.grid_px, endpoint=True))
    flip = bool(rng.random() < config.flip_probability)
    shrink = 1
    while 2 * shrink * zoom <= 1 and 2 * shrink <= min(box_h, box_w, _MAX_SHRINK):
        shrink *= 2
    return Window(
        top - top % shrink,
        left - left % shrink,
        box_h - box_h % shrink,
        box_w - box_w % shrink,
        shrink,
        min(config.crop_px, max(1, round(box_h * zoom))),
        min(config.crop_px, max(1, round(box_w * zoom))),
        flip,
        _draw_colour(rng, config.jitter),
    )


def load_crop(
    jpeg: bytes,
    png: bytes,
    seed: int,
    config: AugmentConfig,
    image_out: np.ndarray,
    label_out: np.ndarray,
    num_classes: int = IGNORE,
) -> None:
    """Decodes one stored sample and cuts its crop into a batch.

    Args:
        jpeg: The stored image.
        png: The stored label.
        seed: 64-bit seed of this row of the stream.
        config: Sizes and probabilities.
        image_out: (crop_px, crop_px, 3) uint8; receives the crop at its top left, and 0 beside it.
        label_out: (crop_px, crop_px) uint8; the same, with IGNORE beside it.
        num_classes: The classes that stored ids are positions in.

    Raises:
        BadSample: It does not decode, or has an id of no class; nothing was written then.
    """
    label = decode_label(png, num_classes)
    window = draw_window(label.shape[0], label.shape[1], seed, config)
    image = decode_jpeg(jpeg, label.shape, window.shrink, _scratch(label.size * 3))
    cut_window(image, label, window, image_out, label_out)


def whole_view(image: np.ndarray, label: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole image for validation: long side `side_px`, padded to a square.

    Returns:
        image: (side_px, side_px, 3) uint8 RGB, padded with 0 at the right and bottom.
        label: (side_px, side_px) uint8, padded with IGNORE.
    """
    height, width = label.shape
    zoom = side_px / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    view = np.zeros((side_px, side_px, 3), np.uint8)
    ids = np.full((side_px, side_px), IGNORE, np.uint8)
    view[: size[1], : size[0]] = cv2.resize(image, size, interpolation=interpolation)
    ids[: size[1], : size[0]] = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return view, ids


def cut_window(
    image: np.ndarray,
    label: np.ndarray,
    window: Window,
    image_out: np.ndarray,
    label_out: np.ndarray,
) -> None:
    """Resizes the window of an image, shrunk already, and of its whole label into place.

    The rest of `image_out` becomes 0, and that of `label_out` IGNORE.
    """
    bottom, right = window.top + window.height, window.left + window.width
    box = image[
        window.top // window.shrink : bottom // window.shrink,
        window.left // window.shrink : right // window.shrink,
    ]
    ids = label[window.top : bottom, window.left : right]
    size = (window.out_width, window.out_height)
    crop = image_out[: window.out_height, : window.out_width]
    crop_ids = label_out[: window.out_height, : window.out_width]
    cv2.resize(box, size, crop, interpolation=cv2.INTER_LINEAR)
    cv2.resize(ids, size, crop_ids, interpolation=cv2.INTER_NEAREST_EXACT)
    if window.flip:
        cv2.flip(crop, 1, crop)
        cv2.flip(crop_ids, 1, crop_ids)
    if window.colour:
        cv2.transform(crop, _colour_matrix(window.colour, cv2.mean(crop)[:3]), crop)
    # What is left of the square, whose memory may hold an earlier crop.
    for out, padding in ((image_out, 0), (label_out, IGNORE)):
        out[window.out_height :] = padding
        out[: window.out_height, window.out_width :] = padding


def _draw_colour(
    rng: np.random.Generator, jitter: JitterConfig
) -> tuple[float, float, float, float] | None:
    if not (jitter.brightness or jitter.contrast or jitter.saturation or jitter.hue):
        return None
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
    return (
        1 + jitter.brightness * brightness,
        1 + jitter.contrast * contrast,
        1 + jitter.saturation * saturation,
        2 * np.pi * jitter.hue * hue,
    )


def _colour_matrix(
    colour: tuple[float, float, float, float], mean: tuple[float, ...]
) -> np.ndarray:
    """One affine map of RGB, (3, 4) float32, for all four changes.

    Each is affine: hue turns the plane orthogonal to grey, saturation stretches the distance from
    a pixel's luma, brightness stretches from black and contrast from the mean luma.
    """
    brightness, contrast, saturation, hue = colour
    # Rodrigues: a rotation about the axis (1, 1, 1).
    cos, sin = np.cos(hue), np.sin(hue)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = cos * np.eye(3) + sin * cross + (1 - cos) / 3
    stretch = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * stretch @ turn
    grey = brightness * float(_LUMA @ np.asarray(mean))
    return np.column_stack([matrix, np.full(3, (1 - contrast) * grey)]).astype(np.float32)


_memory = threading.local()


def _scratch(size: int) -> np.ndarray:
    """Memory of this thread to decode into: new pages for each image cost more than decoding."""
    found = getattr(_memory, "scratch", None)
    if found is None or found.size < size:
        found = _memory.scratch = np.empty(size, np.uint8)
    return found
