"""The table of classes of a dataset of the user's own: `classes.csv`, with what it may hold.

Columns id, name and, if wanted, universal, in any order and case; commas, semicolons or tabs. The
names become the labels that the text encoder reads, so each is one line, and no two may be one to
it: `Bottle-X` and `bottle_x` would be trained against each other.
"""

import csv
import difflib
import io
import re
from collections.abc import Sequence

from pipeline.data.taxonomy import IGNORE, spelling, universal
from pipeline.data.taxonomy.labelling import OwnClass
from pipeline.errors import UserError, printable
from pipeline.storage.base import Storage

_IGNORED = "-"
_COLUMNS = ("id", "name", "universal")
_UNIVERSAL = _COLUMNS[2]
_MORE = "\n"
"""The key of the cells beyond the columns; no column can be called so."""
_MAX_BYTES = 1 << 20
_MAX_NAME = 200


def read_classes(root: Storage, path: str, key: str) -> tuple[OwnClass, ...]:
    """Reads the table that the setting `key` names.

    Raises:
        UserError: It is missing or damaged, or names classes that no training could tell apart.
    """
    where = f"{key}={root.uri}/{path}"
    text, separator = _table(root, path, where)
    rows = csv.DictReader(
        io.StringIO(text, newline=""), restkey=_MORE, delimiter=separator, skipinitialspace=True
    )
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    _check_columns(rows.fieldnames, where)
    found: dict[int, OwnClass] = {}
    spelt: dict[str, OwnClass] = {}
    for row in rows:
        line = f"{where}: line {rows.line_num}"
        entry = _class_of(row, line)
        if entry.native_id in found:
            raise UserError(f"{line}: id={entry.native_id}: comes twice: keep one of the lines")
        found[entry.native_id] = entry
        if entry.target is None:
            continue
        first = spelt.setdefault(spelling(entry.target), entry)
        if first.target != entry.target:
            raise UserError(
                f"{line}: name={entry.name!r}: is the same to the text encoder as {first.name!r} "
                f"(id {first.native_id}): give both one name, or name what differs"
            )
    if not any(entry.target is not None for entry in found.values()):
        raise UserError(f"{where}: names no class: write a line with an id and a name for each")
    return tuple(found[number] for number in sorted(found))


def _check_columns(names: Sequence[str], where: str) -> None:
    """Refuses columns of which one is missing, comes twice, or was most likely meant otherwise."""
    if not {"id", "name"} <= {*names}:
        shown = _shown(", ".join(names)) or "nothing"
        raise UserError(
            f"{where}: its first line must name the columns id and name, with commas, semicolons "
            f"or tabs between: it is {shown}"
        )
    for name in _COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{where}: names the column {name} twice: keep one of them")
    for name in set(names) - {*_COLUMNS}:
        if _UNIVERSAL not in names and difflib.get_close_matches(name, [_UNIVERSAL], cutoff=0.75):
            raise UserError(
                f"{where}: has a column {_shown(name)!r}, which is not read: call it {_UNIVERSAL} "
                "if that is meant, or leave it out"
            )


def _table(root: Storage, path: str, where: str) -> tuple[str, str]:
    """The text of the table, which the parser takes, and what separates its columns."""
    try:
        if root.size(path) > _MAX_BYTES:
            raise UserError(f"{where}: must be a table of at most 255 classes: it is too large")
        text = root.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{where}: no such file: write a table with the columns id,name,universal"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: must be text in UTF-8: save it as that") from None
    first = text.partition("\n")[0]
    separator = next((mark for mark in "\t,;" if mark in first), ",")
    try:
        # A first time, so that what the parser refuses is met here.
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            pass
    except csv.Error as error:
        raise UserError(f"{where}: is no table: {error}: correct it") from None
    return text, separator


def _class_of(row: dict[str, str], line: str) -> OwnClass:
    more = [cell.strip() for cell in row.get(_MORE, ()) if cell.strip()]
    if more:
        raise UserError(
            f"{line}: has more cells than the first line has columns ({_shown(more[0])!r}): put a "
            "name that holds a comma into double quotes"
        )
    number, name = (row["id"] or "").strip(), (row["name"] or "").strip()
    if number.lstrip("0") == str(IGNORE):
        raise UserError(
            f"{line}: id={_shown(number)!r}: must be a whole number from 0 to 254, since 255 "
            "stands for unlabelled pixels: write another id, such as 1, into the masks and here"
        )
    if not re.fullmatch(r"0*[0-9]{1,3}", number, re.ASCII) or int(number[-3:]) >= IGNORE:
        raise UserError(f"{line}: id={_shown(number)!r}: must be a whole number from 0 to 254")
    if not name:
        raise UserError(f"{line}: has no name: write one")
    if not name.isprintable():
        raise UserError(
            f"{line}: name={_shown(name)}: must be one line of plain text: remove the line break "
            "or control character"
        )
    if len(name) > _MAX_NAME:
        raise UserError(f"{line}: name={_shown(name)}: must have at most {_MAX_NAME} characters")
    return OwnClass(
        int(number[-3:]), name, _target(name, (row.get("universal") or "").strip(), line)
    )


def _target(name: str, wanted: str, where: str) -> str | None:
    """The universal class, a new one, or None for no label."""
    if wanted == _IGNORED:
        return None
    if not wanted:
        alike = spelling(name)
        return next((n for n in universal().classes if spelling(n) == alike), name)
    try:
        universal().id_of(wanted[:_MAX_NAME])
    except UserError as error:
        raise UserError(
            f"{where}: universal={_shown(wanted)!r}: {error}; or leave it empty"
        ) from None
    return wanted


def _shown(text: str) -> str:
    return printable(text[:40]) + ("..." if len(text) > 40 else "")
