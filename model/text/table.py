"""Label vectors from a file: GloVe's, or those that another model was asked for.

A line is a label and its numbers: `dog 0.1 -0.2 ...` as GloVe and word2vec write them (word2vec's
first line, two counts, is passed over), or, for labels of several words, the label, a tab and the
numbers. Only the place of each line is kept, so that a table of a million words costs one look
through it.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from model.config import TABLE, TextConfig
from model.errors import ModelError
from model.settings_file import shown
from model.text.encoder import TextEncoder

_MAX_DIM = 2**16
_MAX_LINE = 2**21
"""Bytes of a line; 65,536 numbers of 16 digits are half of that."""
_MAX_WORDS = 5_000_000


class TableEncoder(TextEncoder):
    """Vectors of a file, for the labels that it holds.

    A label is looked for as it is written, then in lower case.

    Raises:
        ModelError: there is no such file, or its first lines are no table.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self._path = Path(config.encoder.removeprefix(TABLE)).expanduser()
        if not self._path.is_file():
            what = "is a folder" if self._path.is_dir() else "no such file"
            raise self._wrong(f"{what}: name a file with a word and its numbers on each line")
        with self._path.open("rb") as file:
            line = self._line(file)
            if _is_head(line):
                line = self._line(file)
        self.dim = len(self._parted(line, 1)[1])
        if not 2 <= self.dim <= _MAX_DIM:
            raise self._wrong(
                f"its first line holds {self.dim} numbers: must be a word and at least 2: check it"
            )
        self._numbers(line, 1)

    @cached_property
    def _places(self) -> dict[str, int]:
        """The place of the line of each label; of several lines of one label the first."""
        places: dict[str, int] = {}
        with self._path.open("rb") as file:
            place, number = 0, 0
            while line := self._line(file):
                number += 1
                if line.strip() and not (number == 1 and _is_head(line)):
                    places.setdefault(self._parted(line, number)[0], place)
                if len(places) > _MAX_WORDS:
                    raise self._wrong(f"holds more than {_MAX_WORDS} words: leave some out")
                place = file.tell()
        return places

    def _forward(self, texts: list[str]) -> Tensor:
        places = self._places
        found = [text if text in places else text.lower() for text in texts]
        if lost := [text for text, key in zip(texts, found, strict=True) if key not in places]:
            raise self._wrong(f"holds no vector for {_named(lost, places)}")
        with self._path.open("rb") as file:
            rows = []
            for key in found:
                file.seek(places[key])
                line = self._line(file)
                if self._parted(line, 0)[0] != key:
                    raise self._wrong("has changed while it was read: start again")
                rows.append(self._numbers(line, 0))
        return torch.from_numpy(np.stack(rows))

    def _line(self, file: BinaryIO) -> bytes:
        """The next line; a longer one than any vector's would go on as another label's."""
        line = file.readline(_MAX_LINE)
        if len(line) == _MAX_LINE and not line.endswith(b"\n"):
            raise self._wrong(f"has a line of more than {_MAX_LINE} bytes: it is no table")
        return line

    def _parted(self, line: bytes, number: int) -> tuple[str, list[bytes]]:
        """The label of a line, and its numbers as they are written."""
        try:
            label, tab, rest = line.partition(b"\t")
            if tab and len(label.split()) >= 1 and not _is_number(rest.split()[:1]):
                raise ValueError("a tab is followed by no number")
            if tab:
                return label.decode().strip(), rest.split()
            words = line.split()
            # A label may have spaces where the length of the vectors is known.
            cut = max(1, len(words) - self.dim) if hasattr(self, "dim") else 1
            return b" ".join(words[:cut]).decode(), words[cut:]
        except ValueError as error:  # No UTF-8 among them.
            raise self._wrong(f"line {number} is none of a table: {error}: check it") from None

    def _numbers(self, line: bytes, number: int) -> np.ndarray:
        """The numbers of a line: (dim,) float32."""
        label, parts = self._parted(line, number)
        where = f"the line of {shown(label)}"
        try:
            row = np.array([float(part) for part in parts], np.float32)
        except ValueError:
            raise self._wrong(f"{where} has what is no number: check it") from None
        if len(row) != self.dim:
            raise self._wrong(f"{where} holds {len(row)} numbers, the first {self.dim}: check it")
        if not np.isfinite(row).all() or not row.any():
            raise self._wrong(f"{where} holds no finite vector of a length: check it")
        return row

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"text.encoder={TABLE}{self._path}: {what}")


def _is_head(line: bytes) -> bool:
    """Whether a line is word2vec's first: how many words, and how many numbers of each."""
    return len(line.split()) == 2 and all(part.isdigit() for part in line.split())


def _is_number(parts: Sequence[bytes]) -> bool:
    try:
        return bool(parts) and np.isfinite(float(parts[0]))
    except ValueError:
        return False


def _named(lost: Sequence[str], places: dict[str, int]) -> str:
    """The labels that are not there, the first with what is like it, and what to do."""
    names = ", ".join(shown(text) for text in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    some = [word for word in places if word[:1] == lost[0][:1].lower()][:20_000]
    close = get_close_matches(lost[0].lower()[:80], some, n=1)
    hint = f"did you mean {shown(close[0])}?" if close else "name labels that it holds"
    return f"{names}{more}: {hint}, or add a line for each: the label, a tab, and its numbers"
