"""Turns what the parser says about a wrong setting into one line: key = value: what is allowed.

jsonargparse tells types in Python's words and over many lines; a user of a recipe knows YAML.
"""

import re
import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from pipeline.errors import did_you_mean

_KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text (in quotes where it looks like a number)",
    type(None): "null",
}
_PLURALS = {float: "numbers", int: "whole numbers", bool: "true or false", str: "texts"}
_VALUE = r"(?:Got|Given) value: ?(.*?)(?= - Expected| Given value| Subclass types expect|$)"
_FILES = r"Problems parsing config|Unexpected config|'utf-8' codec|unacceptable character"


def explain(parser: ArgumentParser, message: str, recipes: Sequence[str]) -> str:
    """One line that names the key and, for an unknown key, the nearest known one.

    Args:
        parser: That has refused its input.
        message: Its words.
        recipes: The files given by `--config`.
    """
    known, groups = keys_of(parser)
    words = " ".join(message.split())
    recipe = f"--config {', '.join(recipes)}"
    if found := re.search(r'"config": (File does not exist|Path is not a file): \'(.*)\'', words):
        what = "there is no such file" if "exist" in found[1] else "is not a file"
        return f"--config {found[2]}: {what}: check the path"
    if found := re.match(r"Key must be a string, got: (.*)\.$", words):
        return f"{recipe}: {found[1]}: a key must be a word such as train, not a number"
    if re.match(_FILES, words):
        return f"{recipe}: not a YAML mapping of settings, such as `train: {{lr: 0.01}}`: {words}"
    # A group that may be null is a union to the parser, which lists each member's complaint.
    inside = re.search(r"Errors: - (.*?) - Expected a <class 'NoneType'>", words)
    key = re.findall(r'Parser key "([\w.\-]+)"', words)
    if inside and "Parser key" not in inside[1]:
        if "Expected a " not in inside[1]:  # The group's own check, which says it all.
            return re.sub(r"^Problem with given class_path .[\w.]+.: ", "", inside[1])
        inside = None
    if unknown := _unknown(words, known, groups, key[:1]):
        return unknown
    if found := re.search(r"Unable to load config '(.*?)' - ", words):
        return not_a_group(key[0], found[1])
    values = re.findall(_VALUE, inside[1] if inside else words)
    if re.match(r"unrecognized arguments: [^\-]", words):
        return f"{words}: write --KEY VALUE or --KEY=VALUE"
    if not key or not values:
        return words
    action = next((a for a in parser._actions if a.dest == key[0]), None)
    hint = getattr(action, "_typehint", None)
    if inside and len(key) == 2:
        hint = _field_hint(hint, key[1])
    allowed = _PLAIN.get(key[0]) or (describe(hint) if hint else "")
    if not allowed:
        return words
    choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    near = did_you_mean(values[-1], choices)
    value = values[-1] or "''"
    return f"{'.'.join(key)}={value}: must be {allowed}{near or _default(parser, key[0])}"


_PLAIN = {"data.weights": "'equal', 'size' or a mapping of dataset to number"}
"""Of what is allowed by words that its type does not tell."""


def not_a_group(group: str, value: Any) -> str:
    """The message about a single value where a mapping of settings belongs."""
    return (
        f"{group}={value}: must be a group of settings: write {group}.KEY, or in a recipe a "
        "mapping of keys to values"
    )


def keys_of(parser: ArgumentParser) -> tuple[list[str], list[str]]:
    """The dotted keys of all settings, and those of the groups that they are in."""
    known = sorted(key for key in parser.get_defaults().keys() if key != "config")
    groups = {key[: dot.start()] for key in known for dot in re.finditer(r"\.", key)}
    return known, sorted(groups)


def _field_hint(hint: Any, name: str) -> Any:
    """The type of a setting within a group that may be null."""
    group = next((part for part in get_args(hint) if is_dataclass(part)), None)
    return get_type_hints(group).get(name) if group else None


def not_null(parser: ArgumentParser, key: str) -> str:
    """What is wrong with null as the value of a setting; empty where it is allowed."""
    hint = next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == key), None)
    if hint is None or hint is Any or type(None) in get_args(hint):
        return ""
    return f"{key}=null: must be {describe(hint)}{_default(parser, key)}"


def describe(hint: Any) -> str:
    """A type in the words of YAML."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is dict:
        return f"a mapping of names to {_plural(parts[1])}"
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} {_plural(parts[0])}"
    if origin in (tuple, list):
        return f"a list of {_plural(parts[0])}, as in [a, b]"
    return _KINDS.get(hint) or getattr(hint, "__name__", str(hint))


def _plural(hint: Any) -> str:
    if hint is Any:
        return "values"
    return "groups of settings" if is_dataclass(hint) else _PLURALS.get(hint) or describe(hint)


def _default(parser: ArgumentParser, key: str) -> str:
    value = parser.get_defaults().get(key)
    if value in (None, "", {}, (), []):
        return ": correct it, or leave the key out"
    value = list(value) if isinstance(value, tuple) else value
    return f": correct it, or leave the key out for {value}"


def _unknown(words: str, known: list[str], groups: list[str], inside: list[str]) -> str:
    """The message about a key that does not exist, or an empty string."""
    nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", words)
    plain = re.search(
        r"(?:Unrecognized arguments: --|Option '|does not accept option ')([\w.\-]+)", words, re.I
    )
    if not nested and not plain:
        return ""
    key = ".".join(nested.groups()) if nested else plain.group(1) if plain else ""
    if inside and plain and not nested:  # A mapping of groups, such as `own`.
        return f"{inside[0]}: no such key in it: {key}; --help names those that there are"
    if key in known:
        return ""
    group = key.rpartition(".")[0]
    siblings = [other for other in known if other.startswith(f"{group}.")] if group else []
    if not siblings:
        return f"{key}: no such key{did_you_mean(key, [*known, *groups]) or '; see --help'}"
    # Compared without the group, which would make all of its keys look alike.
    leaves = {other.removeprefix(f"{group}."): other for other in siblings}
    near = did_you_mean(key.rpartition(".")[2], leaves)
    near = re.sub(r"'(.*)'", lambda match: f"'{leaves[match[1]]}'", near)
    return f"{key}: no such key{near or '; see --help'}"
