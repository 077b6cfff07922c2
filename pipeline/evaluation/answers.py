"""What the network is asked, and how its answers become classes.

Shapes: B batch, T texts, K classes, R rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.config import OtherPolicy

DROPPED = -1
"""The class of texts that are asked but cannot win: their classes do not exist in the dataset."""


@dataclass(frozen=True)
class AnswerSpace:
    """The classes of an evaluation, and the texts that stand for them.

    A class's probability is the sum over its texts of the softmax over all texts.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    """What the network is asked; empty where every picture brings its own."""
    text_class: tuple[int, ...]
    """The class of each text: a position in `classes`; `len(classes)` for none of them; DROPPED."""
    lut: tuple[int, ...]
    """Stored id (0..255) -> position in `classes`, or IGNORE."""
    threshold: float | None = None
    """Pixels whose best class is less probable are none of the classes."""
    rest: int | None = None
    """The class that means "none of the others" (a background); it gets those pixels."""
    policy: str = "none"
    """How "other" is handled, in words."""

    def __post_init__(self) -> None:
        assert len(self.texts) in (0, len(self.text_class))
        assert len(self.lut) == 256
        assert len(self.classes) < IGNORE

    @property
    def none(self) -> int:
        """The prediction that means none of the classes."""
        return len(self.classes) if self.rest is None else self.rest

    @property
    def one_text_each(self) -> bool:
        """Whether the best text decides, without any probability."""
        used = [number for number in self.text_class if number != DROPPED]
        return self.threshold is None and len(set(used)) == len(used)

    def target(self, stored: np.ndarray) -> np.ndarray:
        """Stored ids as classes: (H, W) uint8, positions or IGNORE."""
        return np.asarray(self.lut, np.uint8)[stored]

    def with_policy(self, other: OtherPolicy) -> "AnswerSpace":
        """The same classes under a policy for "other"."""
        if other.policy == "threshold":
            return replace(self, threshold=other.threshold, policy=str(other))
        if other.policy == "prompts":
            extra = tuple(text for text in other.prompts if text not in self.texts)
            none = (self.none,) * len(extra)
            texts, classes = (*self.texts, *extra), (*self.text_class, *none)
            return replace(self, texts=texts, text_class=classes, policy=str(other))
        return replace(self, policy=str(other))


def space_of(
    classes: Sequence[str],
    texts: Sequence[str],
    lut: np.ndarray | Sequence[int],
    text_class: Sequence[int] | None = None,
    rest: int | None = None,
) -> AnswerSpace:
    """An answer space in which, unless told otherwise, each text is the class at its place."""
    numbers = tuple(range(len(texts)) if text_class is None else text_class)
    return AnswerSpace(tuple(classes), tuple(texts), numbers, tuple(int(i) for i in lut), rest=rest)


@torch.no_grad()
def choose(logits_BTRW: Tensor, space: AnswerSpace) -> Tensor:
    """Takes the best class of each pixel.

    Args:
        logits_BTRW: (B, T, R, W), the mean over views where there are several.
        space: What the texts mean.

    Returns:
        (B, R, W) int64: positions in `space.classes`, or `space.none`.
    """
    classes = torch.tensor(space.text_class, device=logits_BTRW.device)
    kept = (classes != DROPPED).nonzero()[:, 0]
    if space.one_text_each:
        return classes[kept[logits_BTRW[:, kept].argmax(1)]]
    count = max(len(space.classes), int(classes.max()) + 1)
    sums = logits_BTRW.new_zeros((len(logits_BTRW), count, *logits_BTRW.shape[2:]))
    sums.index_add_(1, classes[kept], logits_BTRW.softmax(1)[:, kept])
    probability, best = sums.max(1)
    return (
        best if space.threshold is None else best.where(probability >= space.threshold, space.none)
    )
