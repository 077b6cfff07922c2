"""Checks given settings before the parser sees them: key = value: what is allowed: what to do.

The parser describes types in Python's words and over many lines; a user of a recipe knows YAML. It
also takes null for any setting, and a single value for a whole group, without complaint. So each
recipe and each option is compared with the dataclasses of the job's configuration here. The parser
keeps the last word: what passes these checks may still be refused by it.
"""

import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader

from model.settings_file import MAX_BYTES, check_yaml
from pipeline.errors import UserError, did_you_mean

_KINDS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
    type(None): ("null", "nulls"),
    Any: ("a value", "values"),
}
"""The types of single values, and of many, in the words of YAML."""

_IN_QUOTES = "(in quotes where it looks like a number)"

_ALLOWED = {"data.weights": "'equal', 'size' or a mapping of dataset to number"}
"""Allowed values that a type annotation cannot express, by key."""

_NO_RECIPE = (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What reading a file raises that is no recipe, or more than one can be."""

_NO_FILE = "there is no such file"

_OPENING, _MOST_OPEN = ("[", "{", "- ", "? "), 500

_BARE = object()
"""The value of an option that stands alone, as `--rollback` may."""


def check_settings(
    config_class: type, defaults: Namespace, words: Sequence[str], bare: Mapping[str, Any]
) -> None:
    """Compares the words of a command line, and its recipes, with a configuration's fields.

    Args:
        config_class: The dataclass of the job's configuration.
        defaults: The values of all its settings where they are not set.
        words: The command line without the program's name.
        bare: The settings that may stand without `--KEY`, as `jobs.cli.build_parser` takes them.

    Raises:
        UserError: A key is unknown, or a value is none of those that its type allows.
    """
    if {"-h", "--help"} & set(words):
        return
    given: list[Mapping[str, Any]] = []
    keys = iter(bare)
    for key, value in options(words):
        if key == "config" and value is not _BARE:
            given.append(read_recipe(value))
        elif key not in ("", "config", "print_config") and not key.endswith((".help", "+")):
            given.append({key: value})
        elif not key and not value.startswith("-") and "*" not in str(bare):
            key = next(keys, "")
            if not key:
                raise UserError(
                    f"unrecognized arguments: {value}: write --KEY VALUE or --KEY=VALUE"
                )
            given += [{key: value}] if key in _hints(config_class) else []
    for settings in given:
        _check_depth(settings)
        _check_group(config_class, settings, "", defaults)


def _check_depth(settings: Mapping[str, Any]) -> None:
    """Refuses texts that the parser, which reads each as YAML, would end the process over.

    Raises:
        UserError: One opens more lists and mappings than any setting has.
    """
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(key, inner) for inner in value]
        elif isinstance(value, str) and sum(map(value.count, _OPENING)) > _MOST_OPEN:
            raise UserError(
                f"{key}={value[:20]!r}...: opens more than {_MOST_OPEN} lists and mappings: "
                "correct it"
            )


def options(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the options of a command line in their order.

    Yields:
        The key and the text of `--KEY=TEXT` and `--KEY TEXT`; for an option that stands alone, a
        marker instead of the text; for a word that belongs to no option, an empty key.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            yield "", word
        elif equals or not rest or rest[0].startswith("--"):
            yield key, text if equals else _BARE
        else:
            yield key, rest.pop(0)


def read_recipe(text: str) -> Mapping[str, Any]:
    """Reads what `--config` names: the path of a recipe, or a recipe's content.

    Raises:
        UserError: There is no such file, or it is not a YAML mapping of settings.
    """
    content, where, problem = read_value(text), "--config", ""
    if not isinstance(content, Mapping):
        where = f"--config {text if len(text) <= 200 else f'{text[:60]}...'}"
        try:
            path = Path(text).expanduser()
            what = "" if path.is_file() else "is not a file" if path.exists() else _NO_FILE
        except (OSError, ValueError, RuntimeError):  # No name that a file can have, or no home.
            path, what = Path(), _NO_FILE
        if what:
            raise UserError(f"{where}: {what}: check the path")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB")
            text = path.read_text(encoding="utf-8")
            check_yaml(text)
            content = get_loader("yaml")(text)
        except _NO_RECIPE as error:
            problem = f": {' '.join(str(error).split())}"
    if problem or not isinstance(content, Mapping):
        form = "not a YAML mapping of settings, such as `train: {lr: 0.01}`"
        raise UserError(f"{where}: {form}{problem}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{where}: {key}: a key must be a word such as train, not a number")
    return content


def read_value(text: str) -> Any:
    """The value that a text of the command line is read as; the text itself where it is no YAML."""
    try:
        check_yaml(text)  # First: what is deep ends the process that builds it.
        return get_loader("yaml")(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _check_group(
    group: type, settings: Mapping[Any, Any], prefix: str, defaults: Namespace
) -> None:
    hints = _hints(group)
    for key, value in settings.items():
        name, _, rest = str(key).partition(".")
        if name in hints:
            inner = {rest: value} if rest else value
            _check_value(hints[name], inner, f"{prefix}{name}", defaults)
        elif prefix:  # Compared without the group, which would make all of its keys look alike.
            near = did_you_mean(name, hints).replace(" '", f" '{prefix}") or "; see --help"
            raise UserError(f"{prefix}{key}: no such key{near}")
        else:
            while isinstance(value, Mapping) and value:
                inner, value = next(iter(value.items()))
                key = f"{key}.{inner}"
            near = did_you_mean(key, defaults.keys(branches=True)) or "; see --help"
            raise UserError(f"{key}: no such key{near}")


def _check_value(hint: Any, value: Any, key: str, defaults: Namespace) -> None:
    if value is _BARE:
        return
    parts, origin = get_args(hint), get_origin(hint)
    # A group may come as a file, and both it and a mapping as one text: `--train '{lr: 0.01}'`.
    if is_dataclass(hint) and isinstance(value, str) and Path(value).is_file():
        value = read_recipe(value)
    read = read_value(value) if isinstance(value, str) else value
    group: Any = next((part for part in (hint, *parts) if is_dataclass(part)), None)
    if origin is dict and isinstance(read, Mapping):
        for name, inner in read.items():
            first, _, rest = name.partition(".") if group else (name, "", "")
            _check_value(parts[1], {rest: inner} if rest else inner, f"{key}.{first}", defaults)
    elif group and origin is not dict and isinstance(read, Mapping):
        _check_group(group, read, f"{key}.", defaults)
    elif not _fits(hint, value):
        shown = "null" if value is None else "''" if value == "" else value
        if group and origin is not dict:
            allowed = f"a group of settings: write {key}.KEY, or in a recipe a mapping of keys to "
            raise UserError(f"{key}={shown}: must be {allowed}values")
        default = defaults.get(key)
        way_out = did_you_mean(str(value), map(str, parts)) if origin is Literal else ""
        if not way_out:
            way_out = ": correct it, or leave the key out"
            if default not in (None, "", {}, (), []):
                shape = list(default) if isinstance(default, tuple) else default
                way_out += f" for {shape}"
        raise UserError(f"{key}={shown}: must be {_ALLOWED.get(key) or _must_be(hint)}{way_out}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether the parser takes a value for one of a type; null only where the type says so."""
    if value is None or is_dataclass(hint):
        return hint is Any or type(None) in get_args(hint)
    try:
        _judge(hint).parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


@functools.cache
def _judge(hint: Any) -> ArgumentParser:
    """A parser of one value of a type."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def type_words(hint: Any, many: int = 0) -> str:
    """A type in the words of YAML; of many values of it where `many` is 1."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(part, many) for part in parts)
    if origin is dict:
        return f"a mapping of names to {type_words(parts[1], 1)}"
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} {type_words(parts[0], 1)}"
    if origin in (tuple, list):
        return f"a list of {type_words(parts[0], 1)}"
    return _KINDS.get(hint, ("a group of settings", "groups of settings"))[many]


def _must_be(hint: Any) -> str:
    """What a value of a type must be, with how it is written where that is not plain."""
    words = type_words(hint).replace("a text", f"a text {_IN_QUOTES}")
    return re.sub(r"(a list of (?!\d).*)", r"\1, as in [a, b]", words)


@functools.cache
def _hints(group: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = get_type_hints(group)
    return {entry.name: hints[entry.name] for entry in fields(group)}
