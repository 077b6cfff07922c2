"""From images of any kind to batches, and from scores to label ids.

Shapes: B batch, K labels, H W image pixels, h w scores.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError
from model.upsampling import source_rows, upsample_rows

NO_LABEL = -1
"""The id of pixels that belong to none of the named labels."""

CHUNK_MIB = 64

MAX_BATCH_MPX = 4
"""Megapixels of the images that go through the network together."""


def as_batches(images: Any) -> list[Tensor]:
    """Makes uint8 batches of images of one size.

    Args:
        images: one image or a sequence of them, as PIL images or as arrays or tensors (H, W, 3)
            uint8 RGB; or one array or tensor (B, H, W, 3).

    Returns:
        (B, H, W, 3) uint8 tensors, in order: neighbours of one size together, up to
        `MAX_BATCH_MPX`.

    Raises:
        ModelError: something is not 8-bit RGB.
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        images = list(_as_uint8(images))
    if not isinstance(images, Sequence):
        images = [images]
    if not len(images):
        raise ModelError("images=[]: must be at least one image: name some")
    batches = []
    for shape, group in groupby((_as_uint8(image) for image in images), lambda image: image.shape):
        if len(shape) != 3:
            raise ModelError(
                f"images: got one of shape {tuple(shape)} among several: each must be (H, W, 3): "
                "pass a batch (B, H, W, 3) alone"
            )
        size = max(1, int(MAX_BATCH_MPX * 1e6 / (shape[0] * shape[1])))
        batches += [chunk for chunk in torch.stack(list(group)).split(size)]
    return batches


def _as_uint8(image: Any) -> Tensor:
    if hasattr(image, "convert"):  # PIL, whatever its mode
        image = np.array(image.convert("RGB"))
    if isinstance(
        image, np.ndarray
    ):  # torch takes no mirrored views (BGR -> RGB), no read-only ones
        image = np.require(image, requirements=("C", "W"))
    tensor = torch.as_tensor(image)
    if tensor.dtype != torch.uint8 or tensor.ndim not in (3, 4) or tensor.shape[-1] != 3:
        raise ModelError(
            f"images: got {tuple(tensor.shape)} {tensor.dtype}: must be RGB, (H, W, 3) uint8: "
            "convert it, or pass PIL images"
        )
    return tensor


@torch.no_grad()
def label_ids(logits_BKhw: Tensor, size: tuple[int, int], threshold: float | None = None) -> Tensor:
    """Upsamples scores and takes the best label of each pixel, some rows at a time.

    Args:
        logits_BKhw: (B, K, h, w)
        size: (H, W) of the result.
        threshold: pixels whose best label has a smaller probability (softmax over the K) get
            `NO_LABEL`.

    Returns:
        (B, H, W) int64, 0..K-1 or `NO_LABEL`, on the device of the scores.
    """
    height, width = size
    num_images, num_labels, source, _ = logits_BKhw.shape
    rows = max(1, int(CHUNK_MIB * 2**20 / (4 * num_images * num_labels * width)))
    parts = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        span = source_rows(start, stop, source, height)
        chunk = upsample_rows(
            logits_BKhw[:, :, span].float(), span.start, (start, stop), source, size
        )
        if threshold is None:
            parts.append(chunk.argmax(1))
        else:
            probability, best = chunk.softmax(1).max(1)
            parts.append(best.where(probability >= threshold, NO_LABEL))
    return torch.cat(parts, dim=1)
