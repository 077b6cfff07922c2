"""Digests of the samples that each step used, so that two runs can be compared.

The digest of a step is the sum, modulo 2^64, of a hash of every row that the workers got for it:
position t in the stream, dataset, key, seed of the augmentation, checksum of what was read. A sum
does not depend on how the rows were dealt to the workers, so runs on different numbers of workers
have the same digests; and a hash holds t, so a row that came at another step, twice or never
changes them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.ingest.mixture import Mixture, Row
from pipeline.data.ingest.stream import Corpus


class StreamOrder:
    """The rows of the stream, by step; the corpus gives their keys."""

    def __init__(self, mixture: Mixture, corpus: Corpus) -> None:
        self._mixture = mixture
        self._keys = [
            [record.key for shard in corpus.manifests[name].shards for record in shard.samples]
            for name in mixture.datasets
        ]
        self._step, self._rows = -1, list[Row]()

    def rows(self, step: int) -> list[Row]:
        """The rows of one global batch, in stream order."""
        if step != self._step:
            self._step, self._rows = step, self._mixture.batch(step)
        return self._rows

    def name_of(self, row: Row) -> str:
        """The sample of a row, as `dataset/key`."""
        return f"{self._mixture.datasets[row.dataset]}/{self._keys[row.dataset][row.sample]}"

    def digest(self, rows: Sequence[Row], checksums: Sequence[int]) -> int:
        """The digest of some rows: a signed 64-bit number, to be summed with overflow.

        Args:
            rows: Rows of the stream.
            checksums: CRC-32 of each one's stored sample, as it was read.
        """
        total = 0
        for row, checksum in zip(rows, checksums, strict=True):
            key = self._keys[row.dataset][row.sample]
            words = f"{row.t} {self._mixture.datasets[row.dataset]} {key} {row.seed} {checksum:08x}"
            digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
            total += int.from_bytes(digest, "little")
        return wrapped(total)


def wrapped(number: int) -> int:
    """A sum of signed 64-bit numbers, with overflow."""
    return (number + 2**63) % 2**64 - 2**63


def write(path: Path, digests: Sequence[int]) -> None:
    """Writes the digests of the steps 1, 2, ... as lines of 16 hex digits."""
    # In one call each: a million steps would hold the interpreter, and the training, for a second.
    path.write_text(np.array(digests, ">i8").tobytes().hex("\n", 8) + "\n" * bool(digests))


def read(path: Path) -> list[int]:
    """Reads what `write` wrote."""
    return [wrapped(int(line, 16)) for line in path.read_text().split()]


def summary(digests: Sequence[int]) -> str:
    """One short name for the order of all steps: 16 hex digits."""
    return hashlib.blake2b(np.array(digests, "<i8").tobytes(), digest_size=8).hexdigest()
