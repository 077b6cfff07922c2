"""What a network answers when photographs are asked in other words than those of its training.

One dataset, its own names, and a table of words. Every image goes through the network once and gets
several questions:

    own           all names of the dataset
    synonyms      the same with the first synonym of each name in its place
    word          one synonym or super-class word in place of the names that it stands for
    absent        all names, and the words of the table for what is not there
    other         half of the names that the image shows, all that it does not show, and a word for
                  none of them; or no such word, and a least probability
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.metrics import ConfusionMatrix
from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.behaviours.questions import (
    MIN_PRESENT_SHARE,
    Asker,
    ViewedSample,
)
from pipeline.evaluation.photos.words import Word, of_kind

THRESHOLD = 0.5
"""Least probability of a label where no word stands for "none of these"."""


@dataclass
class Overlap:
    """Pixels of an answer and of the truth, summed over images."""

    both: int = 0
    either: int = 0

    def add(self, answer: np.ndarray, truth: np.ndarray) -> None:
        """Adds one image: (n,) bool each."""
        self.both += int((answer & truth).sum())
        self.either += int((answer | truth).sum())

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where there is neither."""
        return self.both / self.either if self.either else None


@dataclass
class WordFigures:
    """One word beside the names in whose place it stands."""

    word: Word
    members: tuple[int, ...]
    """Positions of these names in those of the dataset."""
    asked: Overlap = field(default_factory=Overlap)
    trained: Overlap = field(default_factory=Overlap)


@dataclass
class Share:
    """A part of some pixels, summed over images."""

    part: int = 0
    whole: int = 0

    def add(self, part: np.ndarray, whole: np.ndarray) -> None:
        """Adds one image: (n,) bool each, the part within the whole."""
        self.part += int((part & whole).sum())
        self.whole += int(whole.sum())

    @property
    def value(self) -> float | None:
        """0..1; None where there are no pixels."""
        return self.part / self.whole if self.whole else None


class PhotoQuestions:
    """Asks the images of one dataset one after the other, and adds up.

    Args:
        texts: The dataset's names, as the text encoder is given them.
        lut: (256,) uint8: stored id -> position in `texts`, or IGNORE.
        words: The table of words.
        seed: Seed of the draws of what is named.
    """

    def __init__(
        self, texts: Sequence[str], lut: np.ndarray, words: Sequence[Word], seed: int
    ) -> None:
        self.texts, self._lut = tuple(texts), lut
        self._rng = np.random.default_rng(seed)
        found = ((word, word.among(texts)) for word in of_kind(words, "synonym", "super-class"))
        self.words = [
            WordFigures(word, members)
            for word, members in found
            # A word that is itself a name of the dataset is no new one, nor is one for nothing.
            if members and not set(Word("", word.word).among(texts)) & {*members}
        ]
        self.renamed = list(self.texts)
        for figures in reversed(self.words):  # So that the first synonym of a name stays.
            if figures.word.kind == "synonym" and len(figures.members) == 1:
                self.renamed[figures.members[0]] = figures.word.word
        self.absent = tuple(w.word for w in of_kind(words, "absent") if not w.among(texts))
        self.others = tuple(w.word for w in of_kind(words, "other") if not w.among(texts))
        self.own, self.synonyms = (ConfusionMatrix(len(self.texts) + 1) for _ in range(2))
        self.to_absent = {word: Share() for word in self.absent}
        self.to_other = {word: Share() for word in (*self.others, _BY_THRESHOLD)}
        self.kept = {word: Share() for word in self.to_other}
        self.num_images = 0

    def add(self, asker: Asker, sample: ViewedSample) -> None:
        """Asks about one image."""
        target = self._lut[sample.label]
        labelled = target != IGNORE
        if not labelled.any():
            return
        self.num_images += 1
        truth = target[labelled]

        def ask(texts: Sequence[str]) -> np.ndarray:
            return asker.ask(sample, texts)[labelled]

        own = ask(self.texts)
        self.own.update(own, truth.astype(np.int64))
        if self.renamed != list(self.texts):
            self.synonyms.update(ask(self.renamed), truth.astype(np.int64))
        for figures in self.words:
            rest = [t for i, t in enumerate(self.texts) if i not in figures.members]
            is_truth = np.isin(truth, figures.members)
            figures.asked.add(ask([*rest, figures.word.word]) == len(rest), is_truth)
            figures.trained.add(np.isin(own, figures.members), is_truth)
        if self.absent:
            answer = ask([*self.texts, *self.absent])
            for number, share in enumerate(self.to_absent.values(), len(self.texts)):
                share.add(answer == number, np.ones_like(labelled[labelled]))
        self._ask_for_other(asker, sample, target, labelled)

    def _ask_for_other(
        self, asker: Asker, sample: ViewedSample, target: np.ndarray, labelled: np.ndarray
    ) -> None:
        counts = np.bincount(target[labelled], minlength=len(self.texts))
        present = np.flatnonzero(counts > MIN_PRESENT_SHARE * target.size)
        if len(present) < 2:
            return
        named, unnamed = np.array_split(self._rng.permutation(present), 2)
        asked = [i for i in range(len(self.texts)) if i in named or not counts[i]]
        texts = [self.texts[i] for i in asked]
        hidden, shown = np.isin(target, unnamed), np.isin(target, named)
        right = np.full(256, -2)
        right[asked] = np.arange(len(asked))
        for word, share in self.to_other.items():
            if word == _BY_THRESHOLD:
                answer = asker.ask_surely(sample, texts, THRESHOLD)
                answer[answer < 0] = len(texts)
            else:
                answer = asker.ask(sample, [*texts, word])
            share.add(answer == len(texts), hidden)
            self.kept[word].add(answer == right[target], shown)

    def figures(self) -> dict[str, Any]:
        """All figures, 0..1, and those of each word."""
        words = {
            f"{each.word.kind}: {each.word.word}": {
                "names": ", ".join(self.texts[i] for i in each.members),
                "iou": _rounded(each.asked.iou),
                "iou_by_names": _rounded(each.trained.iou),
            }
            for each in self.words
            if each.asked.either
        }
        absent = {word: _rounded(share.value) for word, share in self.to_absent.items()}
        names = range(len(self.texts))
        renamed = self.renamed != list(self.texts)
        return {
            "images": self.num_images,
            "own_miou": _rounded(self.own.miou(over="target", classes=names)),
            "synonyms_miou": _rounded(
                self.synonyms.miou(over="target", classes=names) if renamed else None
            ),
            "renamed": {a: b for a, b in zip(self.texts, self.renamed, strict=True) if a != b},
            "absent_share": round(sum(value or 0.0 for value in absent.values()), 4),
            "absent": absent,
            "unnamed_to_other": {w: _rounded(s.value) for w, s in self.to_other.items()},
            "named_kept": {w: _rounded(s.value) for w, s in self.kept.items()},
            "words": words,
        }


_BY_THRESHOLD = f"(below {THRESHOLD:g})"
"""What stands in the figures for a least probability in place of a word."""


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)
