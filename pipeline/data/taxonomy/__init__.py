"""The one label space, and how each dataset's own classes map into it.

The universal classes are the 194 of MSeg (Lambert et al., CVPR 2020); a universal id is the line
number in `universal.txt`, counted from 0. `<dataset>.tsv` lists every class of a dataset's official
list with the value that stands for it on disk (COCO: the category id) and the universal class that
MSeg's taxonomy gives it without relabelling; an empty field means that its pixels are ignored.
`overrides.tsv` lists the few classes whose target there is wrong for most of their pixels, and what
a conversion without MSeg's relabelling takes instead.
Cityscapes keeps the 19 classes of its own benchmark; `cityscapes34.tsv` is the choice to use all of
its labels.
"""

import csv
import hashlib
import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, did_you_mean

IGNORE = 255
"""The id of pixels that take no part in training or scoring, native and universal alike."""

DATASETS = ("ade20k", "bdd100k", "cityscapes", "coco_panoptic", "idd", "mapillary", "sunrgbd")
"""The training sets, by the names that recipes and shards use."""

VARIANTS = ("cityscapes34",)
"""Further tables of the datasets' classes, to be chosen in place of the dataset's own."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class NativeClass:
    """One class as its dataset defines it."""

    native_id: int
    """The value on disk, 0 to 254 (COCO: the category id of a segment)."""
    native_name: str
    """The dataset's own spelling."""
    universal_name: str | None
    """The universal class of these pixels, or None when they are ignored."""


@dataclass(frozen=True)
class Taxonomy:
    """An ordered set of class names; a universal id is a position in it."""

    name: str
    """Names the label space in manifests and checkpoints, such as `mseg-194`."""
    classes: tuple[str, ...]
    """The class names; entry i has universal id i. At most 255, since 255 is IGNORE."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever the name, a class or the order changes."""
        text = "\n".join((self.name, *self.classes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: universal_id for universal_id, name in enumerate(self.classes)}

    def id_of(self, name: str) -> int:
        """Returns the universal id of a class.

        Raises:
            UserError: The taxonomy has no class of this name.
        """
        try:
            return self._ids[name]
        except KeyError:
            raise UserError(
                f"class {name!r}: not one of the {len(self.classes)} classes of {self.name}"
                f"{did_you_mean(name, self.classes)}"
            ) from None


@cache
def universal() -> Taxonomy:
    """Returns the 194 universal classes in MSeg's order."""
    names = (_FOLDER / "universal.txt").read_text(encoding="utf-8").splitlines()
    return Taxonomy("mseg-194", tuple(names))


@cache
def native_table(dataset: str, overridden: bool = False) -> tuple[NativeClass, ...]:
    """Returns every class of a dataset's official list, in the order of the native ids.

    Args:
        dataset: One of `DATASETS` or `VARIANTS`.
        overridden: Whether the targets of `overrides` replace MSeg's own.

    Raises:
        UserError: The dataset is not one of `DATASETS` or `VARIANTS`.
    """
    if dataset not in VARIANTS:
        require_dataset(dataset)
    changed = overrides(dataset) if overridden else {}
    return tuple(
        NativeClass(int(row["native_id"]), name, changed.get(name, row["universal_name"] or None))
        for row in read_tsv(_FOLDER / f"{dataset}.tsv")
        for name in (row["native_name"],)
    )


@cache
def overrides(dataset: str) -> Mapping[str, str | None]:
    """The classes that are mapped otherwise without relabelling: name -> universal one or None."""
    rows = (row for row in read_tsv(_FOLDER / "overrides.tsv") if row["table"] == dataset)
    return {row["native_name"]: row["universal_name"] or None for row in rows}


@cache
def lookup_table(dataset: str, overridden: bool = False) -> np.ndarray:
    """Returns `native_table` as the table that turns native ids into universal ids by indexing.

    Returns:
        (256,) uint8: entry i is the universal id of native id i, IGNORE for every value that the
        dataset's table does not list or that it ignores. Read-only.

    Raises:
        UserError: The dataset is not one of `DATASETS` or `VARIANTS`.
    """
    targets = {n.native_id: n.universal_name for n in native_table(dataset, overridden)}
    table = id_table({i: universal().id_of(n) for i, n in targets.items() if n is not None})
    table.flags.writeable = False
    return table


def id_table(ids: Mapping[int, int]) -> np.ndarray:
    """A table that turns ids into others by plain indexing.

    Returns:
        (256,) uint8: entry i is `ids[i]`, IGNORE where there is none.
    """
    table = np.full(256, IGNORE, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def read_tsv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that comes with this package, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def require_dataset(dataset: str) -> None:
    """Checks the name of a training set.

    Raises:
        UserError: The dataset is not one of `DATASETS`; the message names the closest.
    """
    if dataset not in DATASETS:
        raise UserError(
            f"dataset {dataset!r}: must be one of {', '.join(DATASETS)}"
            f"{did_you_mean(dataset, DATASETS)}"
        )


def label_text(universal_name: str) -> str:
    """Returns a class name as words for the text encoder: `chair_other` -> `chair other`."""
    return universal_name.replace("_", " ")


_UNSEEN = {ord(mark): None for mark in "\u00ad\u200b\u2060\ufeff"}
"""Marks that show nothing and join no letters, unlike those of Persian or of emoji."""


def spelling(name: str) -> str:
    """What a text encoder reads of a class name: equal for names that differ in spelling alone.

    Case, and whether words are parted by spaces, hyphens or underscores, make no label another.
    """
    text = unicodedata.normalize("NFKC", html.unescape(name)).casefold().translate(_UNSEEN)
    return " ".join(re.sub(r"[\s_-]+", " ", text).split())
