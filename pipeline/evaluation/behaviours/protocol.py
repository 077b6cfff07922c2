"""The four behaviours of LSeg's first figure, as one protocol with thresholds and a picture.

    present      labels in the picture are found
    absent       labels that are not in it are not hallucinated
    other        pixels of classes that no label names go to "other"
    superclass   a word for several classes finds its members

Every picture gets two questions: one that names half of its classes, five absent ones and "other"
(the first three behaviours), and one with all super-class words and "other".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.evaluation.behaviours.questions import (
    OTHER,
    Asker,
    Behaviours,
    ViewedImage,
    super_class_question,
)
from pipeline.evaluation.overlay import ComparedImage

THRESHOLDS = {
    # Half of a named class's pixels, where one label in about ten would be right by chance.
    "present": 0.50,
    # Absent labels are half of all that is asked; at random they would get half of the pixels.
    "absent": 0.10,
    # "Other" is one answer in about ten.
    "other": 0.50,
    # As for unseen classes, which are among the members.
    "superclass": 0.35,
}
"""What holds; all are lower bounds but `absent`, an upper one."""

TITLES = {
    "present": "present labels found",
    "absent": "absent labels hallucinated",
    "other": "unnamed classes go to other",
    "superclass": "super-class words: mIoU",
}


@dataclass(frozen=True)
class BehaviourVerdict:
    """One figure against its threshold."""

    name: str
    value: float
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether the behaviour is there."""
        if self.name == "absent":
            return self.value < self.threshold
        return self.value > self.threshold


class FourBehaviours:
    """Asks about pictures one after the other, and adds up.

    Args:
        vocabulary: Universal classes that absent labels are drawn from.
        super_classes: Words, and the universal classes that each should find.
        seed: Of the draws; the same pictures in the same order get the same questions.
    """

    def __init__(
        self, vocabulary: Sequence[str], super_classes: Mapping[str, tuple[str, ...]], seed: int
    ) -> None:
        self._vocabulary, self._members = tuple(vocabulary), dict(super_classes)
        self._questions = Behaviours(vocabulary, seed)
        self._supers = super_class_question(super_classes)

    def add(self, asker: Asker, picture: ViewedImage) -> None:
        """Asks about one picture."""
        self._supers.add(asker, picture)
        self._questions.add(asker, picture)

    def figures(self) -> dict[str, float]:
        """The four figures, and what chance would give for super-classes; 0..1."""
        return {
            **self._questions.figures(),
            "superclass": self._supers.miou,
            "superclass_chance": self._supers.chance_miou,
        }

    def verdicts(self) -> list[BehaviourVerdict]:
        """Each of the four against its threshold."""
        figures = self.figures()
        return [BehaviourVerdict(name, figures[name], bound) for name, bound in THRESHOLDS.items()]

    def report(self) -> dict[str, Any]:
        """Figures, thresholds and verdicts as plain values."""
        return {
            "figures": self.figures(),
            "thresholds": THRESHOLDS,
            "reached": {verdict.name: verdict.holds for verdict in self.verdicts()},
        }

    def rows(self, asker: Asker, pictures: Sequence[ViewedImage]) -> list[ComparedImage]:
        """One example of each behaviour for a picture of segmentations.

        The picture with the most classes shows presence, the next two absence and "other", the one
        with the most members of super-classes the fourth.
        """
        if not pictures:
            return []
        richness = [len(np.unique(picture.label)) for picture in pictures]
        ranked = [pictures[i] for i in np.argsort(richness, kind="stable")[::-1]]
        first, second, third = (ranked[i % len(ranked)] for i in range(3))
        members = [universal().id_of(name) for group in self._members.values() for name in group]
        shares = [float(np.isin(picture.label, members).mean()) for picture in pictures]
        fourth = pictures[int(np.argmax(shares))]
        shown = self._shown(second)
        absent = [name for name in self._vocabulary if name not in shown][:5]
        also = "also asked:\n" + ", ".join(label_text(name) for name in absent)
        supers = {
            word: group
            for word, group in self._members.items()
            if set(group) & set(self._shown(fourth))
        }
        return [
            _row(asker, first, "present: all its classes asked", _own(self._shown(first))),
            _row(asker, second, f"absent: {also}", _own([*shown, *absent])),
            _row(asker, third, "other: half of its classes asked", _own(self._shown(third)[::2])),
            _row(asker, fourth, "super-class words", supers or self._members),
        ]

    def _shown(self, picture: ViewedImage) -> list[str]:
        return [universal().classes[i] for i in np.unique(picture.label) if i != IGNORE]


def _own(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {label_text(name): (name,) for name in names}


def _row(
    asker: Asker, picture: ViewedImage, what: str, members: Mapping[str, tuple[str, ...]]
) -> ComparedImage:
    lut = np.full(256, len(members), np.int64)
    lut[IGNORE] = IGNORE
    for position, group in enumerate(members.values()):
        lut[[universal().id_of(name) for name in group]] = position
    texts = (*members, OTHER)
    title = f"{picture.dataset}: {what}"
    prediction = asker.ask(picture, texts)
    return ComparedImage(
        title, picture.image, lut[picture.label], prediction, texts, has_other=True
    )
