"""How an image goes through the network: resized as a whole, squashed, or in windows."""

from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from model.sliding import AS_IT_IS, PUBLISHED, SINGLE_SCALE, SlidingConfig
from pipeline.evaluation.config import Geometry
from pipeline.evaluation.items import Item


def network_input(image: np.ndarray, geometry: Geometry) -> np.ndarray:
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
    if geometry.mode == "whole" and geometry.base_px:
        height, width = image.shape[:2]
        zoom = geometry.base_px / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        return image if size == (width, height) else cv2.resize(image, size, interpolation=how)
    return image


def scored_target(target: np.ndarray, geometry: Geometry) -> np.ndarray:
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


def scored_size(item: Item, geometry: Geometry) -> tuple[int, int]:
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


def sliding_config(geometry: Geometry) -> SlidingConfig:
    """The views that the network takes of what `network_input` gives it."""
    if geometry.mode in ("whole", "squash"):
        return AS_IT_IS
    kind = PUBLISHED if geometry.mode == "published" else SINGLE_SCALE
    return replace(kind, base_px=geometry.base_px, window_px=geometry.window_px)
