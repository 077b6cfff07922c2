"""Damages trees and lines of text: JSON, YAML, tables and lists."""

import copy
import json
import random
import re
from collections.abc import Sequence
from typing import Any

from tests.support.mutators import BLIND

VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 255, 256, 1 << 31, 1 << 40, -(1 << 63))
VALUES += (1 << 64, 0.5, 1e9, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "0", "²")
VALUES += ("a\nb", "\x1b]0;x\x07", "\ud800", "../../etc/passwd", "/etc/passwd", "a\\b", "a//b")
VALUES += ("\0", "x" * 300, "local-dir:/tmp", "hf-hub:a/b", "s3://no/such", [], {}, [[]], {"": {}})
VALUES += ([0] * 1000, {"a": {"b": {"c": None}}}, list(range(300)))
"""What a field may hold in the file of an attacker, or of a careless script."""


_MOST_PLACES = 5000


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each value below a tree."""
    found, todo = [], [tree]
    while todo and len(found) < _MOST_PLACES:
        node = todo.pop()
        keys = node if isinstance(node, dict) else range(len(node)) if _is_list(node) else ()
        for key in list(keys):
            found.append((node, key))
            todo.append(node[key])
    return found


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def change_tree(tree: Any, rng: random.Random) -> Any:
    """Replaces, removes, doubles, renames or swaps values of a tree, in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = _places(tree)
        if not places or rng.random() < 0.01:
            return copy.deepcopy(rng.choice(VALUES))
        node, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(("", "x" * 300, "é", "__class__", f"{key} "))] = node.pop(key)
            case 2 if _is_list(node) and len(places) < _MOST_PLACES:
                node.extend([node[key]] * rng.choice((1, 3, 1000)))
            case 3:
                other, there = rng.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    node[key] = copy.deepcopy(other[there])
            case _:
                value = node[key]
                near = [value + 1, -value, value * 1000] if type(value) in (int, float) else []
                node[key] = copy.deepcopy(rng.choice([*VALUES, *near]))
    return tree


def json_fields(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of a JSON document, or nests one too deeply, in text that still parses."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return rng.choice(BLIND)(data, rng, others)
    tree = change_tree(tree, rng)
    text = json.dumps(tree)
    if rng.random() < 0.05:
        # Too deep for Python's parser, or a number that takes it long.
        hostile = rng.choice(("[" * 100_000 + "]" * 100_000, "9" * 5000, "1e999", "-0"))
        at = rng.choice([m.start() for m in re.finditer(r"(?<=[:,\[ ])\d+", text)] or [0])
        text = text[:at] + re.sub(r"^\d*", lambda _: hostile, text[at:], count=1)
    return text.encode(errors="surrogatepass")


def json_lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of one line of a file of JSON lines; leaves, cuts or doubles the others."""
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    lines[at] = json_fields(lines[at], rng, others).replace(b"\n", b"") + b"\n"
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), lines[at][: rng.randrange(len(lines[at]))])
    return b"".join(lines)


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [*{previous}, *{previous}, *{previous}, *{previous}, *{previous}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_TREES = (
    _BOMB,
    "a: &a {b: *a}\n",
    "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "? [1, 2]\n: x\n",
    "a: !!python/object/apply:os.getpid []\n",
    "a: 2001-01-01\n",
    "1: x\n",
    "a: 1_0:59.5\n",
)
"""Trees of aliases and other traps of YAML, as whole documents."""


def yaml_fields(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of a YAML document; the result is YAML, at times a tree of aliases."""
    import yaml

    try:
        tree = yaml.safe_load(data)
    except Exception:
        return rng.choice(BLIND)(data, rng, others)
    if rng.random() < 0.1:
        trap = rng.choice(YAML_TREES).encode()
        places = [m.end() for m in re.finditer(rb"\n", data)] or [0]
        at = rng.choice((0, len(data), rng.choice(places)))
        indent = b"  " * rng.randrange(3)
        trap = b"".join(indent + line + b"\n" for line in trap.splitlines())
        return data[:at] + trap + data[at:]
    tree = change_tree(tree, rng)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")


CELLS = (
    "",
    "²",
    "9" * 5000,
    "x" * 200_000,
    "-1",
    "255",
    "256",
    "1e3",
    "nan",
    '"',
    "é",
    "a\tb",
    "=1+1",
)


def table_cells(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes a cell of a CSV or TSV, or takes or gives one; at times not UTF-8."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    cells = re.split(rb"([,\t])", lines[at])
    match rng.randrange(5):
        case 0:
            cells.pop(rng.randrange(len(cells)))
        case 1:
            cells.insert(rng.randrange(len(cells) + 1), rng.choice((b",", b"\t", b"x")))
        case 2:
            cells[rng.randrange(len(cells))] = b"\xff\xfe" + rng.randbytes(3)
        case _:
            cells[rng.randrange(len(cells))] = rng.choice(CELLS).encode()
    lines[at] = b"".join(cells)
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"\n".join(lines)


def text_lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Takes, doubles or replaces lines; at times with other ends of lines."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            lines[at] += rng.choice(("\x85", "\u2028", "\x0b", "\r", "\0")).encode() + b"x"
        case 3:
            lines[at] = b"\xff" + rng.randbytes(4)
        case _:
            lines[at] = rng.choice(CELLS).encode()
    return b"\n".join(lines)
