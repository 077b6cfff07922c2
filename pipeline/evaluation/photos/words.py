"""The words that photographs are asked, beside the names that were trained: `words.tsv`.

A line has a kind, a word, and the names of classes that the word should find:

    synonym       another word for one class
    super-class   a word for several classes at once
    absent        a word for what no photo shows; no training asked it either
    other         a word for "none of these"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.data.taxonomy import label_text, spelling

KINDS = ("synonym", "super-class", "absent", "other")


@dataclass(frozen=True)
class Word:
    """One line of the table."""

    kind: str
    word: str
    names: tuple[str, ...] = ()
    """Names of the classes that it should find, as words."""

    def among(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of its classes in a dataset's names; of the word itself as well."""
        wanted = {spelling(label_text(name)) for name in (self.word, *self.names)}
        return tuple(i for i, name in enumerate(names) if spelling(label_text(name)) in wanted)


@cache
def photo_words() -> tuple[Word, ...]:
    """Reads the table."""
    text = Path(__file__).with_name("words.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(
        Word(kind, word, tuple(filter(None, names.split(",")))) for kind, word, names in rows
    )


def of_kind(words: Sequence[Word], *kinds: str) -> tuple[Word, ...]:
    """The lines of some kinds."""
    return tuple(word for word in words if word.kind in kinds)
