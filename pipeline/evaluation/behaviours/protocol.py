"""The four behaviours of LSeg's first figure, as one protocol with thresholds and a sheet.

    present      labels of what the image shows are found
    absent       labels of what it does not show are not hallucinated
    other        pixels of classes that no label names go to "other"
    superclass   a word for several classes finds its members

Every image gets two questions: one that names half of its classes, five absent ones and "other"
(the first three behaviours), and one with all super-class words and "other".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.evaluation.behaviours.questions import (
    OTHER,
    Asker,
    Behaviours,
    ViewedSample,
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
class FigureVerdict:
    """One figure against its threshold."""

    name: str
    title: str
    value: float
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether the figure is as it should be: high, but for `absent`."""
        if self.name == "absent":
            return self.value < self.threshold
        return self.value > self.threshold


def verdict_table(verdicts: Sequence[FigureVerdict], title: str = "") -> Table:
    """A table for the terminal, a line for each figure."""
    table = Table(title=title or None, box=box.SIMPLE)
    for name in ("figure", "result", "wanted", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for verdict in verdicts:
        wanted = f"{'<' if verdict.name == 'absent' else '>'} {verdict.threshold:g}"
        holds = "ok" if verdict.holds else "[bold red]not reached[/]"
        table.add_row(verdict.title, f"{verdict.value:.3f}", wanted, holds)
    return table


class FourBehaviours:
    """Asks about images one after the other, and adds up.

    Args:
        vocabulary: Universal classes that absent labels are drawn from.
        super_classes: Words, and the universal classes that each should find.
        seed: Seed of the draws; the same images in the same order get the same questions.
    """

    def __init__(
        self, vocabulary: Sequence[str], super_classes: Mapping[str, tuple[str, ...]], seed: int
    ) -> None:
        self._vocabulary, self._members = tuple(vocabulary), dict(super_classes)
        self._questions = Behaviours(vocabulary, seed)
        self._supers = super_class_question(super_classes)

    def add(self, asker: Asker, sample: ViewedSample) -> None:
        """Asks about one image."""
        self._supers.add(asker, sample)
        self._questions.add(asker, sample)

    def figures(self) -> dict[str, float]:
        """The four figures, and what chance would give for super-classes; 0..1."""
        return {
            **self._questions.figures(),
            "superclass": self._supers.miou,
            "superclass_chance": self._supers.chance_miou,
        }

    def verdicts(self) -> list[FigureVerdict]:
        """The verdicts on the four behaviours, each against its threshold."""
        figures = self.figures()
        return [FigureVerdict(n, TITLES[n], figures[n], bound) for n, bound in THRESHOLDS.items()]

    def report(self) -> dict[str, Any]:
        """Figures, thresholds and verdicts as plain values."""
        return {
            "figures": self.figures(),
            "thresholds": THRESHOLDS,
            "reached": {verdict.name: verdict.holds for verdict in self.verdicts()},
        }

    def rows(self, asker: Asker, samples: Sequence[ViewedSample]) -> list[ComparedImage]:
        """One example of each behaviour, to be drawn.

        The image with the most classes shows presence, the next two absence and "other", the one
        with the most members of super-classes the fourth.
        """
        if not samples:
            return []
        richness = [len(np.unique(sample.label)) for sample in samples]
        ranked = [samples[i] for i in np.argsort(richness, kind="stable")[::-1]]
        first, second, third = (ranked[i % len(ranked)] for i in range(3))
        members = [universal().id_of(name) for group in self._members.values() for name in group]
        shares = [float(np.isin(sample.label, members).mean()) for sample in samples]
        fourth = samples[int(np.argmax(shares))]
        shown = self._shown(second)
        absent = [name for name in self._vocabulary if name not in shown][:5]
        also = "also asked:\n" + ", ".join(label_text(name) for name in absent)
        supers = {
            word: group
            for word, group in self._members.items()
            if set(group) & set(self._shown(fourth))
        }
        own = label_members(self._shown(first))
        half = label_members(self._shown(third)[::2])
        return [
            compare(asker, first, "present: all its classes asked", own),
            compare(asker, second, f"absent: {also}", label_members([*shown, *absent])),
            compare(asker, third, "other: half of its classes asked", half),
            compare(asker, fourth, "super-class words", supers or self._members),
        ]

    def _shown(self, sample: ViewedSample) -> list[str]:
        return [universal().classes[i] for i in np.unique(sample.label) if i != IGNORE]


def label_members(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The label of each class, with the class as its only member."""
    return {label_text(name): (name,) for name in names}


def compare(
    asker: Asker,
    image: ViewedSample,
    what: str,
    members: Mapping[str, tuple[str, ...]],
    has_other: bool = True,
) -> ComparedImage:
    """The answer to one question beside the truth, titled by `what` the question shows.

    `members` are labels and the universal classes that each stands for; with `has_other`, "other"
    is asked too, and is right for all classes without a label.
    """
    lut = np.full(256, len(members) if has_other else IGNORE, np.int64)
    lut[IGNORE] = IGNORE
    for position, group in enumerate(members.values()):
        lut[[universal().id_of(name) for name in group]] = position
    texts = (*members, OTHER) if has_other else tuple(members)
    title, prediction = f"{image.dataset}: {what}", asker.ask(image, texts)
    return ComparedImage(title, image.image, lut[image.label], prediction, texts, has_other)
