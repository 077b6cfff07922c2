"""From images of any kind to batches, and from scores to probabilities.

Shapes: B batch, K labels, H W image pixels, R rows.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError

NO_LABEL = -1
"""The id of pixels that belong to none of the named labels."""

MAX_BATCH_MPX = 4
"""Megapixels of the images that go through the network together."""


def probabilities(logits_BKRW: Tensor, apart: bool) -> Tensor:
    """Probabilities of labels, from the mean of their logits over views.

    Args:
        logits_BKRW: (B, K, R, W).
        apart: whether each is the logit that its label alone is right (`Network.scores_apart`);
            otherwise one of the labels is.
    """
    return logits_BKRW.sigmoid() if apart else logits_BKRW.softmax(1)


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
        batches += torch.stack(list(group)).split(size)
    return batches


def _as_uint8(image: Any) -> Tensor:
    if hasattr(image, "convert"):  # PIL, whatever its mode
        image = np.array(image.convert("RGB"))
    # torch takes no mirrored views (BGR -> RGB), no read-only ones.
    if isinstance(image, np.ndarray):
        image = np.require(image, requirements=("C", "W"))
    tensor = torch.as_tensor(image)
    if tensor.dtype != torch.uint8 or tensor.ndim not in (3, 4) or tensor.shape[-1] != 3:
        raise ModelError(
            f"images: got {tuple(tensor.shape)} {tensor.dtype}: must be RGB, (H, W, 3) uint8: "
            "convert it, or pass PIL images"
        )
    return tensor
