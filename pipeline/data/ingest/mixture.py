"""Which sample is row t of the training stream: a pure function of (sizes, weights, seed, t).

The stream is infinite and needs no state. Row t belongs to global batch `t // batch_size`. In each
batch every dataset gets `floor` or `ceil` of its exact share; which datasets round up follows
systematic sampling with a low-discrepancy offset, so that shares are right in the long run too.
Within a dataset the rows walk through one pseudo-random permutation after another: each sample
comes exactly once a pass. N ranks take the rows of a batch in turn, so the batches, and with them
the training, do not depend on N.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError, did_you_mean

PERIOD = 4096
"""Batches after which the rounding pattern repeats; long-run shares are exact to 1/PERIOD row."""

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the stream: which sample, and the seed of its augmentation."""

    t: int
    """Position in the stream, 0-based."""
    dataset: int
    """Index into `Mixture.datasets`."""
    sample: int
    """Index into the samples of that dataset, in the order of its manifest."""
    seed: int
    """64-bit seed for everything random about this row."""


class Mixture:
    """A weighted, deterministic, endless mixture of datasets with random access.

    Args:
        sizes: Samples in each dataset, by name; the order of the names does not matter.
        weights: Share of each dataset in the stream, by name; normalised to sum 1. Weight 0, or
            absence, leaves a dataset out.
        batch_size: Rows of one global batch (over all workers and accumulation steps).
        seed: Changes everything random.
        caps: Most samples used of a dataset, by name: a pseudo-random subset, the same in every
            pass; the datasets that it does not name are used whole.

    Raises:
        UserError: A weight is negative, all are zero, or names no or an empty dataset; or a cap
            names no dataset of the mixture.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float],
        batch_size: int,
        seed: int,
        caps: Mapping[str, int] | None = None,
    ) -> None:
        _check(sizes, weights)
        caps = caps or {}
        used = capped(sizes, caps)
        self.datasets = tuple(sorted(name for name in sizes if weights.get(name, 0) > 0))
        self.batch_size = batch_size
        self.seed = seed
        self._sizes = np.array([sizes[name] for name in self.datasets], np.uint64)
        self._used = np.array([used[name] for name in self.datasets], np.uint64)
        # Keyed by name: adding a dataset to the mixture reshuffles no other.
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in self.datasets]
        self._names = np.array([int.from_bytes(d, "big") for d in digests], np.uint64)
        for name in caps:
            if name not in self.datasets:
                raise UserError(
                    f"data.caps.{name}={caps[name]}: would be ignored, since the dataset's weight "
                    "is 0: leave it out"
                )
        shares = np.array([weights[name] for name in self.datasets], np.float64)
        self.shares = shares / shares.sum()
        quotas = self.shares * batch_size
        base = np.floor(quotas + 1e-9).astype(np.int64)
        fractions = np.clip(quotas - base, 0.0, None)
        extras = _systematic_extras(fractions, batch_size - int(base.sum()))
        # _before[g] = rows of each dataset in the first g batches of a period.
        self._before = np.zeros((PERIOD + 1, len(self.datasets)), np.int64)
        np.cumsum(base + extras, axis=0, out=self._before[1:])

    def batch_counts(self, batch: int) -> np.ndarray:
        """Rows of each dataset in a global batch: (D,) int64, summing to `batch_size`."""
        phase = batch % PERIOD
        return self._before[phase + 1] - self._before[phase]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop) of the stream; what is around them costs little, wherever they are."""
        return self.rows_of([range(start, stop)])

    def batch(self, batch: int) -> list[Row]:
        """All rows of one global batch, in stream order."""
        return self.rows(batch * self.batch_size, (batch + 1) * self.batch_size)

    def rows_of(self, stretches: Sequence[range]) -> list[Row]:
        """The rows of some stretches of the stream, one after the other.

        All are computed together: by themselves a few rows would cost as much as hundreds.
        """
        size = self.batch_size
        parts = [
            self._drawn(batch, max(each.start, batch * size), min(each.stop, (batch + 1) * size))
            for each in stretches
            for batch in range(each.start // size, -(-each.stop // size))
        ]
        if not parts:
            return []
        t, dataset, nth = (np.concatenate(column) for column in zip(*parts, strict=True))
        seeds = _mix(self.seed, 2, t.astype(np.uint64))
        columns = t.tolist(), dataset.tolist(), self._samples(dataset, nth).tolist(), seeds.tolist()
        return [Row(*values) for values in zip(*columns, strict=True)]

    def _drawn(self, batch: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """The rows [start, stop) of the stream, which lie in one global batch.

        Returns:
            t: (N,) int64, positions in the stream.
            dataset: (N,) int64, whose sample each is.
            nth: (N,) int64, how many samples of its dataset came before it.
        """
        cycles, phase = divmod(batch, PERIOD)
        slots = np.repeat(np.arange(len(self.datasets)), self.batch_counts(batch))
        np.random.Generator(np.random.PCG64(_mix(self.seed, 1, batch))).shuffle(slots)
        # How often the dataset of each position came in the batch before it.
        order = np.argsort(slots, kind="stable")
        counts = np.bincount(slots, minlength=len(self.datasets))
        earlier = np.empty_like(slots)
        earlier[order] = np.arange(len(slots)) - np.repeat(np.cumsum(counts) - counts, counts)
        drawn = cycles * self._before[PERIOD] + self._before[phase]
        first = batch * self.batch_size
        part = slice(start - first, stop - first)
        return np.arange(start, stop), slots[part], drawn[slots[part]] + earlier[part]

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one pass: as many as the datasets have samples in use."""
        return int(self._used.sum())

    def _samples(self, dataset: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """Which sample the nth (N,) of each dataset (N,) is: (N,) uint64."""
        size, used = self._sizes[dataset], self._used[dataset]
        sweep, position = np.divmod(nth.astype(np.uint64), used)
        name = self._names[dataset]
        place = _permute(position, used, _mix(self.seed, 3, name, sweep))
        # A capped dataset is the beginning of one fixed permutation of all.
        capped = used != size
        if capped.any():
            of_all = _permute(place[capped], size[capped], _mix(self.seed, 4, name[capped]))
            place[capped] = of_all
        return place


def capped(sizes: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, int]:
    """Samples in use of each dataset, by name.

    Raises:
        UserError: A cap names no dataset.
    """
    for name, cap in caps.items():
        _check_known(f"data.caps.{name}={cap}", name, sizes)
    return {name: min(size, caps.get(name, size)) for name, size in sizes.items()}


def resolve_weights(
    sizes: Mapping[str, int], weights: Mapping[str, float] | str, temperature: float = 1.0
) -> dict[str, float]:
    """Turns a recipe's `data.weights` into a number for each dataset.

    Args:
        sizes: Samples in each dataset, by name.
        weights: `"equal"` (MSeg's way: the same share for each dataset), `"size"` (in proportion
            to `size ** temperature`), or an explicit number by name.
        temperature: Exponent for `"size"`: 1 is proportional, 0 equal.

    Raises:
        UserError: An unknown word, or a temperature that does not fit.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(
            f"data.temperature={temperature}: must be 0 (equal shares) or more; 1 is in proportion "
            "to the sizes"
        )
    if temperature != 1 and weights != "size":
        raise UserError(
            f"data.temperature={temperature}: needs data.weights=size; data.weights={weights} "
            "would ignore it: leave one of the two out"
        )
    if not isinstance(weights, str):
        return dict(weights)
    if weights == "equal":
        return dict.fromkeys(sizes, 1.0)
    if weights == "size":
        return {name: float(size) ** temperature for name, size in sizes.items()}
    raise UserError(
        f"data.weights={weights!r}: must be 'equal', 'size' or a mapping of dataset to number"
        + did_you_mean(weights, ("equal", "size"))
    )


def _check(sizes: Mapping[str, int], weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        _check_known(f"data.weights.{name}={weight}", name, sizes)
        if not weight >= 0 or weight == float("inf"):
            raise UserError(
                f"data.weights.{name}={weight}: a weight must be a number >= 0; "
                "set 0 to leave the dataset out"
            )
        if weight > 0 and sizes[name] < 1:
            raise UserError(f"data.weights.{name}={weight}: the dataset has no samples; set 0")
    if not any(weights.values()):
        raise UserError("data.weights: all are 0; give at least one dataset a positive weight")


def _check_known(setting: str, name: str, sizes: Mapping[str, int]) -> None:
    if name not in sizes:
        raise UserError(
            f"{setting}: no such dataset among the shards, which have "
            f"{', '.join(sorted(sizes)) or 'none'}{did_you_mean(name, sizes)}"
        )


def _systematic_extras(fractions: np.ndarray, num_extra: int) -> np.ndarray:
    """Which datasets round up, for each batch of a period: (PERIOD, D) of 0 or 1.

    The fractions lie end to end on a line of length `num_extra`; the points u, u+1, u+2, ... each
    hit one of them. u runs through PERIOD evenly spaced offsets in bit-reversed order.
    """
    if num_extra == 0:
        return np.zeros((PERIOD, len(fractions)), np.int64)
    edges = np.concatenate([[0.0], np.cumsum(fractions)])
    edges *= num_extra / edges[-1]
    bits = PERIOD.bit_length() - 1
    index = np.arange(PERIOD)
    reversed_index = sum(((index >> b) & 1) << (bits - 1 - b) for b in range(bits))
    offset = (np.asarray(reversed_index) + 0.5) / PERIOD
    # Points of the lattice u + k below an edge: ceil(edge - u).
    below = np.ceil(edges[None, :] - offset[:, None]).astype(np.int64)
    return np.diff(below, axis=1)


def _mix(*words: Any, state: Any = 0x9E3779B97F4A7C15) -> Any:
    """A 64-bit hash of integers (SplitMix64 chained): an int, or (N,) uint64 where a word is.

    With the hash of earlier words as `state` it is that of all.
    """
    for word in words:
        state = (state ^ (word & _MASK64)) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state


def _permute(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Positions in pseudo-random permutations of range(size), each with a key; all (N,) uint64.

    A four-round Feistel network on the next even number of bits; values outside the range walk on
    until they fall inside (cycle walking), which keeps it a bijection.
    """
    # The bits that size - 1 takes: exact, since a size is far below 2**53. A size of 1 takes none.
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1]
    half = ((bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = [_mix(key, number) for number in range(4)]
    value, walking = position.copy(), size > 1
    while walking.any():
        left, right = value >> half, value & mask
        for state in rounds:
            left, right = right, left ^ (_mix(right, state=state) & mask)
        np.copyto(value, (left << half) | right, where=walking)
        walking &= value >= size
    return value
