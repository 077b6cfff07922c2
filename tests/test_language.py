"""Docstrings read aloud: a first line stands alone in `--help`, and nothing is clipped."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Beginnings that continue a line above, which `--help` does not show.
CLIPPED = re.compile(r"^(Of |Those |That of|As `|But )")
CLIPPED_ARGUMENT = re.compile(r"^\s+\w+: (Of |As |Those )")
# Words for which the field has better ones.
WORDS = re.compile(r"\b(told|tells|whoever|cannot be had|mend(s|ed)?|pictures?|nobody)\b", re.I)


def docstrings() -> Iterator[tuple[str, str]]:
    """The place and the text of each docstring, of attributes too."""
    for package in ("jobs", "pipeline", "model"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    if isinstance(node.value.value, str):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value.value


def test_first_lines_stand_alone():
    wrong = [(place, text) for place, text in docstrings() if CLIPPED.match(text)]
    assert wrong == []


def test_arguments_name_their_noun():
    wrong = [
        (place, line)
        for place, text in docstrings()
        for line in text.splitlines()[1:]
        if CLIPPED_ARGUMENT.match(line)
    ]
    assert wrong == []


def test_words_are_those_of_the_field():
    wrong = [(place, word[0]) for place, text in docstrings() if (word := WORDS.search(text))]
    assert wrong == []
