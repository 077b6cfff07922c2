"""From the bytes of a stored sample to one uint8 crop: decode, scale, crop, flip.

LSeg's augmentation: the long side is drawn uniformly from `scale * base_px`, the picture is padded
at the right and bottom when it is smaller than the crop, a window is cut at a uniform position, and
flipped with probability one half. Only the source box of that window is resized, which gives the
same distribution of crops at a fraction of the work.
"""

import os
from dataclasses import dataclass

# OpenCV refuses larger pictures from their header; it reads the variable when it is loaded.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

import cv2
import numpy as np

from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError

# Loader processes run side by side; OpenCV's own threads would only fight each other.
cv2.setNumThreads(1)


class BadSample(ValueError):
    """A stored sample that cannot be decoded; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training crop is cut from a picture."""

    crop_px: int = 480
    """Side of the square crop, in pixels."""
    base_px: int = 520
    """Long side of a picture at scale 1, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale, relative to `base_px`."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    grid_px: int = 1
    """Corners of crops lie on a grid of this many source pixels; 1 is any position."""

    def __post_init__(self) -> None:
        for name, least in (("crop_px", 16), ("base_px", 16), ("grid_px", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"augment.{name}={getattr(self, name)}: must be at least {least} pixels"
                )
        low, high = self.scale
        if not 0 < low <= high:
            raise UserError(
                f"augment.scale={list(self.scale)}: must be two numbers with 0 < low <= high, "
                "such as [0.5, 2.0]"
            )
        if not 0 <= self.flip_probability <= 1:
            raise UserError(
                f"augment.flip_probability={self.flip_probability}: must lie between 0 and 1"
            )


def decode(jpeg: bytes, png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one stored sample.

    Returns:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8, universal ids or IGNORE.

    Raises:
        BadSample: Either does not decode, or their sizes differ.
    """
    image = _decode_one(jpeg, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, "jpg")
    label = _decode_one(png, cv2.IMREAD_UNCHANGED, "png")
    if label.ndim != 2 or label.dtype != np.uint8:
        raise BadSample(f"the png is {label.dtype} of shape {label.shape}, not 8-bit grey")
    if label.shape != image.shape[:2]:
        raise BadSample(f"jpg is {image.shape[:2]} but png is {label.shape} (height, width)")
    return image, label


def random_crop(
    image: np.ndarray, label: np.ndarray, seed: int, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts one training crop; a pure function of its arguments.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8.
        seed: 64-bit seed of this row of the stream.
        config: Sizes and probabilities.

    Returns:
        image: (crop_px, crop_px, 3) uint8 RGB, padded with 0.
        label: (crop_px, crop_px) uint8, padded with IGNORE.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    height, width = label.shape
    low, high = (round(config.base_px * s) for s in config.scale)
    zoom = rng.integers(low, high, endpoint=True) / max(height, width)
    box_h = min(height, max(1, round(config.crop_px / zoom)))
    box_w = min(width, max(1, round(config.crop_px / zoom)))
    top = config.grid_px * int(rng.integers(0, (height - box_h) // config.grid_px, endpoint=True))
    left = config.grid_px * int(rng.integers(0, (width - box_w) // config.grid_px, endpoint=True))
    image = image[top : top + box_h, left : left + box_w]
    label = label[top : top + box_h, left : left + box_w]
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    size = (
        min(config.crop_px, max(1, round(box_w * zoom))),
        min(config.crop_px, max(1, round(box_h * zoom))),
    )
    return _resize_and_pad(image, label, size, config.crop_px)


def whole_view(image: np.ndarray, label: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole picture for validation: long side `side_px`, padded to a square.

    Returns:
        image: (side_px, side_px, 3) uint8 RGB, padded with 0 at the right and bottom.
        label: (side_px, side_px) uint8, padded with IGNORE.
    """
    height, width = label.shape
    zoom = side_px / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    return _resize_and_pad(image, label, size, side_px)


def _decode_one(data: bytes, flags: int, member: str) -> np.ndarray:
    if not data:
        raise BadSample(f"the {member} is empty")
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadSample(f"the {member} does not decode: {error}") from None
    if array is None:
        raise BadSample(f"the {member} does not decode")
    return array


def _resize_and_pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], side_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes to `size` (width, height) and pads to a square of `side_px`."""
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
    ids = cv2.resize(np.ascontiguousarray(label), size, interpolation=cv2.INTER_NEAREST_EXACT)
    if size == (side_px, side_px):
        return resized, ids
    padded = np.zeros((side_px, side_px, 3), np.uint8)
    padded_ids = np.full((side_px, side_px), IGNORE, np.uint8)
    padded[: size[1], : size[0]] = resized
    padded_ids[: size[1], : size[0]] = ids
    return padded, padded_ids
