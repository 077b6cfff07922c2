"""Settings read from a file that may come from anybody: bounded before anything is made of them.

YAML lets a few lines stand for billions of values (aliases), and nests without an end. The file is
looked through event by event first, which takes neither memory nor recursion; only one whose
values are few and shallow is then built.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from model.errors import ModelError

MAX_BYTES = 4 * 2**20
"""Size of a text file of a checkpoint, which is a few kilobytes."""
MAX_VALUES = 100_000
"""Values in a settings file, those of each alias counted again."""
MAX_DEPTH = 40
"""Levels of mappings and lists."""
MAX_CHARS = 20_000
"""Length of one value."""
MAX_DIRECTIVES = 100
"""Definitions of abbreviations for tags, of which a settings file has none."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 3, 120, 120, 40


def shown(value: Any) -> str:
    """Writes a value of any size for a message, in one short line."""
    try:
        text = _short.repr(value)
    except ValueError:  # A whole number of more digits than Python writes.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 300 else f"{text[:297]}..."


def parse_yaml(data: bytes, where: str) -> Any:
    """Parses a YAML file of settings.

    Args:
        data: The content of the file.
        where: The file, for messages.

    Raises:
        ModelError: it is no YAML, or larger or deeper than settings are.
    """
    return _parsed(data, where, "YAML", _from_yaml)


def parse_json(data: bytes, where: str) -> Any:
    """Parses a JSON file as `parse_yaml` does; finite numbers only are not asked for."""
    return _parsed(data, where, "JSON", json.loads)


def text_of(data: bytes, where: str) -> str:
    """Decodes a text file.

    Raises:
        ModelError: it is too large, or no UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise ModelError(f"{where}: is larger than {MAX_BYTES // 2**20} MiB: {_DAMAGED}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{where}: is damaged: it is no UTF-8 text ({error}): fetch it again"
        ) from None


def check_plain(value: Any, where: str, largest: int = 2**16) -> None:
    """Refuses values that no setting of a network has.

    Args:
        value: a value that a file gives.
        where: its dotted key.
        largest: whole numbers are at most this.

    Raises:
        ModelError: it holds something else than texts, numbers, truth values, and lists and
            mappings of them; or too many of these; or a number that is too large.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > 1000 or depth > 6:
            raise ModelError(f"{where}={shown(value)}: holds more than a setting can: {_DAMAGED}")
        if isinstance(item, Mapping):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and abs(item) > largest:
            raise ModelError(f"{where}={shown(value)}: must hold numbers up to {largest}: lower it")
        elif not isinstance(item, str | int | float | None):
            raise ModelError(
                f"{where}={shown(value)}: has a value of a wrong type ({type(item).__name__}): "
                "must hold texts, numbers, lists and mappings only: correct it"
            )


_DAMAGED = "must be the settings of a checkpoint: fetch it again"


def _parsed(data: bytes, where: str, kind: str, parse: Callable[[str], Any]) -> Any:
    text = text_of(data, where)
    try:
        return parse(text)
    # ValueError: a date or number that does not exist; TypeError: a key that is a list.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{where}: is damaged: it is no {kind}: {reason}: fetch it again"
        ) from None


def _from_yaml(text: str) -> Any:
    check_yaml(text)
    return yaml.load(text, Loader=_Loader)  # The safe one.


def check_yaml(text: str) -> None:
    """Counts the values of a YAML text, those of an alias as often as it stands for them.

    Raises:
        ValueError: it holds more, or deeper ones, than settings do.
        yaml.YAMLError: it is no YAML.
    """
    if text.count("%TAG") > MAX_DIRECTIVES:  # Each is compared with all before it.
        raise ValueError(f"it has more than {MAX_DIRECTIVES} directives")
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # Anchor of each open collection; values before it.
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            # One of a collection that is still open holds itself: it has no size yet.
            if event.anchor not in sizes:
                raise ValueError(f"alias {shown(event.anchor)} stands for nothing before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > MAX_CHARS:
                raise ValueError(f"a value has {len(event.value)} characters")
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            count += 1
            open_.append((event.anchor, count))
            if len(open_) > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = count - before + 1
        if count > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values")
