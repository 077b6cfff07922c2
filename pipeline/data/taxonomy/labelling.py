"""What the labels that a conversion stores mean, and how a dataset's ids become them.

Three label spaces: MSeg's universal classes; a dataset's own classes, in the order of its list,
without what stands there for "no class"; and the universal classes extended by those of a dataset
of the user's that no universal class covers.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.data.taxonomy import (
    IGNORE,
    Taxonomy,
    id_table,
    lookup_table,
    native_table,
    spelling,
    universal,
)
from pipeline.errors import UserError

LabelSpace = Literal["universal", "native"]

_NO_CLASS = {
    "ade20k": frozenset({"other"}),
    "idd": frozenset({"unlabeled", "ego vehicle", "rectification border", "out of roi"}),
    "mapillary": frozenset({"Unlabeled"}),
    "sunrgbd": frozenset({"unlabeled"}),
    "cityscapes34": frozenset({"unlabeled", "ego vehicle", "rectification border", "out of roi"}),
}
"""Entries of the datasets' lists that are no classes. Cityscapes' key of 19 names its own."""


@dataclass(frozen=True)
class Labelling:
    """The meaning of one dataset's stored labels."""

    taxonomy: Taxonomy
    """The stored ids are positions in it."""
    lut: bytes
    """256 bytes: native id -> stored id, or IGNORE."""

    @property
    def table(self) -> np.ndarray:
        """The look-up table as (256,) uint8."""
        return np.frombuffer(self.lut, np.uint8)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the look-up table."""
        return hashlib.sha256(self.lut).hexdigest()[:16]


def in_universal(table: str, relabelled: bool) -> Labelling:
    """Labels of a training set in the universal classes.

    Relabelled, they have MSeg's own targets, which its relabelling completes; else the overrides.
    """
    return Labelling(universal(), lookup_table(table, overridden=not relabelled).tobytes())


def in_native(table: str) -> Labelling:
    """Labels of a training set in its own classes."""
    no_class = _NO_CLASS.get(table, frozenset())
    kept = [
        (entry.native_id, entry.native_name)
        for entry in native_table(table)
        if entry.native_name not in no_class
        and not (table == "cityscapes" and entry.universal_name is None)
    ]
    return _numbered(f"{table}-native", kept)


def of_classes(name: str, classes: Iterable["OwnClass"], space: LabelSpace) -> Labelling:
    """Labels of a dataset of the user's own.

    Args:
        name: The dataset.
        classes: Its classes.
        space: `universal` extends the universal classes by those that have none of them; `native`
            takes the dataset's own names alone.

    Raises:
        UserError: There are too many classes.
    """
    classes = list(classes)
    if space == "native":
        named = [(entry.native_id, entry.name) for entry in classes if entry.target is not None]
        spelt: dict[str, str] = {}
        for _, text in named:
            if (first := spelt.setdefault(spelling(text), text)) != text:
                raise UserError(
                    f"own.{name}.classes: {text!r} is the same to the text encoder as {first!r}: "
                    "give both one name, or name what differs"
                )
        return _numbered(f"{name}-native", named)
    known = universal().classes
    extra = [e.target for e in classes if e.target is not None and e.target not in known]
    names = (*known, *dict.fromkeys(extra))
    _check_count(name, len(names))
    taxonomy = Taxonomy(f"{universal().name}+{name}", names) if extra else universal()
    targets = {e.native_id: e.target for e in classes if e.target is not None}
    lut = id_table({native_id: taxonomy.id_of(name) for native_id, name in targets.items()})
    return Labelling(taxonomy, lut.tobytes())


@dataclass(frozen=True)
class OwnClass:
    """One class of a dataset of the user's own."""

    native_id: int
    """The value in the masks, 0 to 254."""
    name: str
    target: str | None
    """The universal class, a new one by its own name, or None to ignore its pixels."""


def _numbered(name: str, classes: list[tuple[int, str]]) -> Labelling:
    names = tuple(dict.fromkeys(text for _, text in classes))
    _check_count(name, len(names))
    lut = id_table({native_id: names.index(text) for native_id, text in classes})
    return Labelling(Taxonomy(name, names), lut.tobytes())


def _check_count(name: str, count: int) -> None:
    if count > IGNORE:
        raise UserError(f"{name}: {count} classes: must be at most {IGNORE}: leave some out")
