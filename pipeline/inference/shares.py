"""How much of an image each label covers, in words for the console."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.checkpoints.label_list import short_label
from pipeline.errors import printable

NONE = -1
"""The position that stands for no label."""

_SHOWN = 6


def shares_of(ids: np.ndarray) -> dict[int, float]:
    """Share of the pixels of each label that there is.

    Args:
        ids: (H, W) integers: positions of labels, or NONE.
    """
    counts = np.bincount(ids.ravel() + 1)
    return {int(i) - 1: float(counts[i] / ids.size) for i in np.flatnonzero(counts)}


def in_words(shares: Mapping[int, float], labels: Sequence[str], none_name: str) -> str:
    """The largest shares, as in `road 43 %, sky 30 %, none of these 2 %`."""
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    words = [
        f"{printable(short_label(labels[i] if i != NONE else none_name))} {percent(share)}"
        for i, share in ordered[:_SHOWN]
    ]
    if len(ordered) > _SHOWN:
        rest = sum(share for _, share in ordered[_SHOWN:])
        words.append(f"{len(ordered) - _SHOWN} more {percent(rest)}")
    return ", ".join(words)


def percent(share: float) -> str:
    """A share with as many digits as tell something."""
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}" if share >= 0.001 else "<0.1%"


class ShareTotals:
    """The mean shares over many images."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}
        self.num_images = 0

    def add(self, shares: Mapping[int, float]) -> None:
        """Counts one image."""
        self.num_images += 1
        for position, share in shares.items():
            self._sums[position] = self._sums.get(position, 0.0) + share

    def means(self) -> dict[int, float]:
        """Mean share of each label that was found."""
        return {position: total / self.num_images for position, total in self._sums.items()}
