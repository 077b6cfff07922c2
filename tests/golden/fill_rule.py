"""Deterministic weights: every number follows from its parameter's published name and shape.

The k-th number of a parameter is mean + std * sqrt(3) * u, with u in (-1, 1) made of the top 24
bits of the k-th output of PCG64 seeded with the CRC-32 of the name. So weights agree between
programs that share no code, no framework and no random number library but PCG64's bit stream.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

SPREAD_HALF = ("cls_token", "pos_embed", "positional_embedding", "class_embedding")
INPUT_FAN = ("text_projection", "proj")
TRANSPOSED_CONVS = tuple(f"act_postprocess{level}.4.weight" for level in (1, 2, 3))


def moments(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, by its published name and shape."""
    leaf = name.split(".")[-1]
    match leaf:
        case "running_var":
            return 1.0, 0.1
        case "running_mean":
            return 0.0, 0.1
        case "logit_scale":
            return math.log(1 / 0.07), 0.0
    if leaf in SPREAD_HALF or name.endswith("token_embedding.weight"):
        return 0.0, 0.5
    if len(shape) == 1:
        return float(leaf == "weight"), 0.1
    if leaf in INPUT_FAN or name.endswith(TRANSPOSED_CONVS):
        return 0.0, shape[0] ** -0.5
    return 0.0, math.prod(shape[1:]) ** -0.5


def fill(name: str, shape: Sequence[int]) -> np.ndarray:
    """Fills one parameter: float32 of this shape (int64 zeros for BatchNorm's batch counter)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    mean, std = moments(name, shape)
    numbers = mean + std * math.sqrt(3) * uniform(name, math.prod(shape))
    return numbers.astype(np.float32).reshape(shape)


def uniform(name: str, count: int) -> np.ndarray:
    """Numbers in (-1, 1) that depend on the name alone: (count,) float64."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return (bits >> np.uint64(40)).astype(np.float64) / 2**23 - (1 - 2**-24)
