"""A protocol that is ready to run: its parts, what they ask, and the rules of its figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.taxonomy import label_text, spelling
from pipeline.evaluation.config import MeanRule, OtherPolicy
from pipeline.evaluation.items import ItemSource
from pipeline.evaluation.views import View
from pipeline.scoring import AnswerSpace


@dataclass(frozen=True)
class Part:
    """One set of images under one question: a dataset, or a fold."""

    name: str
    source: ItemSource
    space: AnswerSpace
    geometry: View
    strata: tuple[str, ...] = ("",)
    """Names of the separate confusion matrices: the classes of a fold, else one for all."""


@dataclass(frozen=True)
class ProtocolPlan:
    """A protocol, ready to run."""

    parts: tuple[Part, ...]
    kind: str
    """How counts become figures: `classes`, `few-shot` or `held-out`."""
    mean_over: MeanRule = "target"
    """Classes of the mean IoU."""
    equal_classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By part: a number for each class; equal numbers are classes that cannot be distinguished."""
    unscored: frozenset[str] = frozenset()
    """Classes that do not enter the mean: the answer "other" of a zero-shot question."""
    notes: tuple[str, ...] = ()
    """Departures that keep the figures from being those of the published protocol."""

    def data(self) -> list[dict[str, Any]]:
        """What is scored, as `ItemSource.described`; what several parts share is named once."""
        found = [part.source.described() for part in self.parts]
        return [each for number, each in enumerate(found) if each not in found[:number]]


def with_policy(space: AnswerSpace, other: OtherPolicy) -> AnswerSpace:
    """An answer space with a policy for "other" applied to it."""
    if other.policy == "threshold":
        return replace(space, threshold=other.threshold, policy=str(other))
    if other.policy == "prompts":
        extra = tuple(text for text in other.prompts if text not in space.texts)
        none = (space.none,) * len(extra)
        texts, classes = (*space.texts, *extra), (*space.text_class, *none)
        return replace(space, texts=texts, text_class=classes, policy=str(other))
    return replace(space, policy=str(other))


def calibrated(space: AnswerSpace, trained: Sequence[str], constant: float) -> AnswerSpace:
    """An answer space in which trained labels must win by a constant.

    Words for "none of the classes" count as trained: they compete in most steps of a training.
    """
    if not constant:
        return space
    seen = {spelling(label_text(label)) for label in trained}
    offsets = tuple(
        -constant if number == space.none or spelling(label_text(text)) in seen else 0.0
        for text, number in zip(space.texts, space.text_class, strict=True)
    )
    return replace(space, offsets=offsets)
