"""How a picture goes through the network: resized as a whole, squashed, or in windows.

Shapes: B batch, T texts, C embedding, H W picture.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.lseg import LSeg
from model.sliding import PUBLISHED, SINGLE_SCALE, SlidingConfig, Views
from pipeline.evaluation.answers import AnswerSpace, choose
from pipeline.evaluation.config import Geometry
from pipeline.evaluation.items import Item


def network_input(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The picture as the network gets it in the modes of one forward pass.

    Args:
        image: (H, W, 3) uint8 RGB.
        geometry: `squash` resizes as Pillow does (bilinear, antialiased), as published; `whole`
            takes the mean of areas where it shrinks.

    Returns:
        (H', W', 3) uint8 RGB; the picture itself in the modes with windows.
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
    """The label at the size at which it is scored: its own, but for `squash`.

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
    """Height and width at which a picture is scored."""
    if geometry.mode == "squash":
        return geometry.window_px, geometry.window_px
    return item.stored.shape[0], item.stored.shape[1]


def nearest(source: int, target: int) -> np.ndarray:
    """Source index of each target index under torch's `nearest`: (target,) int64."""
    # In float32, as torch computes it.
    scale = np.float32(source) / np.float32(target)
    positions = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(positions, source - 1)


@torch.no_grad()
def predict_classes(
    lseg: LSeg,
    inputs: Sequence[np.ndarray],
    text: Tensor,
    geometry: Geometry,
    size: tuple[int, int],
    space: AnswerSpace,
) -> Tensor:
    """Takes the best class of each pixel of some pictures.

    Args:
        lseg: The network, in evaluation mode.
        inputs: B pictures (H', W', 3) uint8 of one size from `network_input`.
        text: (T, C), or (B, T, C) where every picture has its own.
        geometry: How the network sees them.
        size: (H, W) of the result.
        space: What the texts mean.

    Returns:
        (B, H, W) int64 as from `answers.choose`, on the CPU.
    """
    batch = lseg.normalize(torch.from_numpy(np.stack(inputs)))
    if geometry.mode in ("whole", "squash"):
        sliding = SlidingConfig(base_px=None, window_px=None)
    else:
        kind = PUBLISHED if geometry.mode == "published" else SINGLE_SCALE
        sliding = replace(kind, base_px=geometry.base_px, window_px=geometry.window_px)
    bands = Views(lseg, batch, sliding, size).bands(text)
    # Where only the order of scores matters, their sum is as good as their mean, and rounds less.
    views = 1 if space.one_text_each else sliding.num_views
    return torch.cat([choose(band / views, space).cpu() for _, band in bands], dim=1)
