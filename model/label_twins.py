"""Labels that are the same to a text encoder, whatever their spelling.

"Road" and "road", or two descriptions that differ beyond the encoder's context, get one vector. Of
such labels rounding decides which one wins a pixel.
"""

import numpy as np

TOLERANCE = 1e-6
"""Labels whose cosine is within this of 1 are the same."""

_NUM_PROJECTIONS = 8


def label_twins(text_KC: np.ndarray) -> list[tuple[int, int]]:
    """Finds labels that are the same as an earlier one.

    Args:
        text_KC: (K, C), rows of length 1.

    Returns:
        Positions (first, later) for each later label, in the order of the later ones.
    """
    text = np.asarray(text_KC, np.float64)
    # What is that close is close on every axis too, so that of tens of thousands of labels only
    # neighbours on a few axes need comparing.
    axes = np.random.default_rng(0).standard_normal((text.shape[1], _NUM_PROJECTIONS))
    placed = text @ (axes / np.linalg.norm(axes, axis=0))
    order = np.argsort(placed[:, 0], kind="stable")
    placed, reach = placed[order], np.sqrt(2 * TOLERANCE)
    first = np.arange(len(text))
    for offset in range(1, len(text)):
        near = placed[offset:, 0] - placed[:-offset, 0] <= reach
        if not near.any():
            break
        near &= (np.abs(placed[offset:] - placed[:-offset]) <= reach).all(1)
        left, right = order[:-offset][near], order[offset:][near]
        same = ((text[left] - text[right]) ** 2).sum(1) / 2 <= TOLERANCE
        pairs = np.stack([left[same], right[same]])
        np.minimum.at(first, pairs.max(0), pairs.min(0))
    later = np.flatnonzero(first < np.arange(len(text)))
    return list(zip(first[later].tolist(), later.tolist(), strict=True))
