"""How an image goes through the network: resized as a whole, squashed, or in windows."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from model.sliding import AS_IT_IS, PUBLISHED, SINGLE_SCALE, SlidingConfig
from pipeline.checkpoints.provenance import TrainedSize
from pipeline.evaluation.config import DEFAULT_MODES, EvaluateConfig, Mode
from pipeline.evaluation.items import Item

PUBLISHED_PX: dict[str, int] = {"cat-seg": 640, "sed": 768, "fc-clip": 800}
"""Base size of the geometries that others publish their figures of the suite with."""
LONGEST = 1333 / 800
"""The longest long side of `fc-clip`, in short sides: Detectron2's usual sizes."""

FAR = 1.5
"""Images that are so many times larger or smaller than in training are remarked."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A geometry (see `pipeline.evaluation.config.Geometry`) whose sizes are known."""

    mode: Mode = "whole"
    base_px: int = 520
    window_px: int = 480

    def __str__(self) -> str:
        if self.mode == "squash":
            return f"squashed to {self.window_px} px"
        size = f"at {self.base_px} px" if self.base_px else "at their own size"
        if self.mode == "whole":
            return f"whole {size}"
        if self.mode == "cat-seg":
            return (
                f"squashed to {self.base_px} px, in windows of {self.window_px} px and as a whole"
            )
        if self.mode == "sed":
            return f"squashed to {self.base_px} px, as a whole"
        if self.mode == "fc-clip":
            return f"whole, with a short side of {self.base_px} px"
        return f"{self.mode} {size} in windows of {self.window_px} px"


def view_of(config: EvaluateConfig, trained: TrainedSize) -> View:
    """How the network sees images: as configured, as the protocol publishes, else as trained."""
    usual = DEFAULT_MODES.get(config.protocol)
    given = config.geometry
    mode: Mode = given.mode if given else usual or "whole"  # type: ignore[assignment]
    known = View() if mode == usual else View(base_px=trained.base_px, window_px=trained.crop_px)
    if mode in PUBLISHED_PX:
        known = View(base_px=PUBLISHED_PX[mode], window_px=384)
    base_px, window_px = (given.base_px, given.window_px) if given else (None, None)
    return View(
        mode=mode,
        base_px=known.base_px if base_px is None else base_px,
        window_px=known.window_px if window_px is None else window_px,
    )


def size_remark(view: View, trained: TrainedSize) -> str:
    """What to say of images that are seen at another size than in training; else nothing."""
    side_px = view.window_px if view.mode == "squash" else view.base_px
    if not side_px:
        return f"images are seen at their own size; the training saw them at {trained.base_px} px"
    if 1 / FAR <= side_px / trained.base_px <= FAR:
        return ""
    return (
        f"images are seen at {side_px} px, and the training saw them at {trained.base_px} px: the "
        "figures are not those that this network reaches at the size it was trained for"
    )


def network_input(image: np.ndarray, geometry: View) -> np.ndarray:
    """Resizes an image for the modes of one forward pass.

    Args:
        image: (H, W, 3) uint8 RGB.
        geometry: `squash` resizes as Pillow does (bilinear, antialiased), as published; `whole`
            takes the mean of areas where it shrinks.

    Returns:
        (H', W', 3) uint8 RGB; the image itself in the modes with windows.
    """
    if geometry.mode == "squash":
        square = (geometry.window_px, geometry.window_px)
        return np.asarray(Image.fromarray(image).resize(square, Image.Resampling.BILINEAR))
    if geometry.mode == "fc-clip":
        height, width = image.shape[:2]
        zoom = geometry.base_px / min(height, width)
        zoom = min(zoom, LONGEST * geometry.base_px / max(height, width))
        size = tuple(max(1, int(side * zoom + 0.5)) for side in (width, height))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))  # type: ignore[arg-type]
    if geometry.mode in ("cat-seg", "sed"):
        # Twice, as published: by the short side with antialiasing, then to the square without.
        zoom = geometry.base_px / min(image.shape[:2])
        size = tuple(round(side * zoom) for side in (image.shape[1], image.shape[0]))
        near = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))  # type: ignore[arg-type]
        square = (geometry.base_px, geometry.base_px)
        return cv2.resize(near, square, interpolation=cv2.INTER_LINEAR)
    if geometry.mode == "whole" and geometry.base_px:
        height, width = image.shape[:2]
        zoom = geometry.base_px / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        return image if size == (width, height) else cv2.resize(image, size, interpolation=how)
    return image


def scored_target(target: np.ndarray, geometry: View) -> np.ndarray:
    """Resizes a label to the size at which it is scored: its own, but for `squash`.

    Args:
        target: (H, W) uint8.
        geometry: With `squash` the nearest pixel is that of torch's `interpolate`: the one at
            floor(index * H / side).
    """
    if geometry.mode != "squash":
        return target
    side = geometry.window_px
    rows, columns = (nearest(length, side) for length in target.shape)
    return target[rows[:, None], columns[None, :]]


def scored_size(item: Item, geometry: View) -> tuple[int, int]:
    """Height and width at which an image is scored."""
    if geometry.mode == "squash":
        return geometry.window_px, geometry.window_px
    return item.stored.shape[0], item.stored.shape[1]


def nearest(source: int, target: int) -> np.ndarray:
    """Source index of each target index under torch's `nearest`: (target,) int64."""
    # In float32, as torch computes it.
    scale = np.float32(source) / np.float32(target)
    positions = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(positions, source - 1)


def sliding_config(geometry: View) -> SlidingConfig:
    """The views that the network takes of what `network_input` gives it."""
    if geometry.mode in ("whole", "squash", "sed", "fc-clip"):
        return AS_IT_IS
    if geometry.mode == "cat-seg":
        return SlidingConfig(
            # The whole at the size of a window; a hair less, since sizes are rounded up.
            scales=(1.0, geometry.window_px / geometry.base_px * (1 - 1e-9)),
            base_px=geometry.base_px,
            window_px=geometry.window_px,
            stride_px=int(geometry.window_px * 0.667),
        )
    kind = PUBLISHED if geometry.mode == "published" else SINGLE_SCALE
    return replace(kind, base_px=geometry.base_px, window_px=geometry.window_px)
