"""Ray Data ingest: stream positions in, uint8 batches out, in order.

    positions -> pool of CropLoader actors -> one block a batch -> the workers in turn

The plan is a pure function of the position, so only positions travel to the actors; each computes
its rows, reads the samples by byte range and cuts the crops. `preserve_order` and blocks of equal
length make the split among the workers a strict rotation: worker r of N gets batches r, r + N, ...
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import ray.data
from ray.data import DataContext, Dataset, ExecutionOptions

from pipeline.data.augment import AugmentConfig, BadSample, decode, random_crop
from pipeline.data.mixture import Mixture, Row, resolve_weights
from pipeline.data.run_taxonomy import ids_in, union_of
from pipeline.data.shards import (
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    find_manifests,
    read_sample,
)
from pipeline.data.storage import Storage, open_storage
from pipeline.data.taxonomy import Taxonomy
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

BATCHES_PER_TASK = 8
"""Batches that one call to a loader actor makes; large enough to hide Ray's cost of a call."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, in which proportions, and by whom."""

    shards: str = ""
    """Folder of prepared shards: a local directory or `s3://bucket/prefix`."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to validate on."""
    weights: dict[str, float] | str = "equal"
    """Share of each dataset: `equal`, `size`, or a number by dataset name."""
    temperature: float = 1.0
    """With `weights: size`: a share is proportional to size ** temperature."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How crops are cut."""
    num_loaders: int = 1
    """Loader actors in the whole cluster."""
    loader_cpus: float = 0.5
    """Logical CPUs that each loader actor holds."""
    loader_threads: int = 2
    """Threads that decode in each loader actor."""
    max_bad_share: float = 0.001
    """The run stops when more than this share of the samples read cannot be decoded."""

    def __post_init__(self) -> None:
        for name in ("num_loaders", "loader_threads"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}={getattr(self, name)}: must be at least 1")
        if not self.loader_cpus > 0:
            raise UserError(f"data.loader_cpus={self.loader_cpus}: must be above 0")
        if isinstance(self.weights, str):
            resolve_weights({}, self.weights)


@dataclass(frozen=True)
class Corpus:
    """The samples of one split over all datasets, and where they lie."""

    uri: str
    split: str
    manifests: dict[str, Manifest]
    wanted: Taxonomy | None = None
    """The classes to read labels in, others being ignored; None for those of the manifests."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples by dataset."""
        return {name: manifest.num_samples for name, manifest in self.manifests.items()}

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The classes that labels are ids of, once they are read; see `union_of`."""
        return self.wanted or union_of(self.manifests)

    @cached_property
    def luts(self) -> dict[str, np.ndarray]:
        """(256,) uint8, stored id -> id in `taxonomy`, by dataset; only where they differ."""
        tables = {name: ids_in(m, self.taxonomy) for name, m in self.manifests.items()}
        return {name: lut for name, lut in tables.items() if lut is not None}


def open_corpus(uri: str, split: str) -> Corpus:
    """Reads the manifests of one split.

    Raises:
        UserError: There are none under `uri`.
    """
    if not uri:
        raise UserError("data.shards: not set; give the folder that prepare_shards.py wrote")
    manifests = find_manifests(open_storage(uri), split)
    if not manifests:
        raise UserError(
            f"data.shards={uri}: no manifest of split {split!r} below it; run "
            "jobs/prepare_shards.py first, or point to its --out"
        )
    return Corpus(uri, split, manifests)


def build_mixture(corpus: Corpus, config: DataConfig, batch_size: int, seed: int) -> Mixture:
    """The training stream over a corpus; see `Mixture`."""
    weights = resolve_weights(corpus.sizes, config.weights, config.temperature)
    return Mixture(corpus.sizes, weights, batch_size, seed)


def training_stream(
    corpus: Corpus, mixture: Mixture, config: DataConfig, rows_per_batch: int, start: int, stop: int
) -> Dataset:
    """Rows [start, stop) of the mixture as a Ray Dataset of one block a batch.

    Args:
        corpus: Where the samples lie.
        mixture: Which sample each row is.
        config: Loader actors and augmentation.
        rows_per_batch: Rows of one block; must divide `start` and `stop`.
        start: First row of the stream.
        stop: Row after the last one.

    Returns:
        A dataset whose batches of `rows_per_batch` rows are `image` (B, H, W, 3) uint8, `label`
        (B, H, W) uint8, `t` (B,) int64 (position in the stream), `bad` (B,) bool (replaced by a
        blank, because the stored sample does not decode).
    """
    assert start % rows_per_batch == 0
    assert stop % rows_per_batch == 0
    configure_context(config.augment.crop_px, rows_per_batch)
    span = rows_per_batch * BATCHES_PER_TASK
    tasks = [{"start": t, "stop": min(t + span, stop)} for t in range(start, stop, span)]
    # A finished run has no task left, and Ray refuses 0 blocks.
    return ray.data.from_items(tasks, override_num_blocks=max(1, len(tasks))).map_batches(
        CropLoader,
        fn_constructor_args=(corpus, mixture, config, rows_per_batch),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=config.num_loaders),
        num_cpus=config.loader_cpus,
    )


def execution_options() -> ExecutionOptions:
    """Options that make the order of the stream, and its split among workers, reproducible."""
    return ExecutionOptions(preserve_order=True)


def configure_context(crop_px: int, rows_per_batch: int) -> None:
    """Sets this process's DataContext so that each batch of a loader becomes one block."""
    context = DataContext.get_current()
    # A block closes once it exceeds the target, and is cut in two from 1.5 times the target.
    context.target_max_block_size = rows_per_batch * crop_px * crop_px * 4
    context.execution_options = execution_options()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class CropLoader:
    """The actor that turns stream positions into batches of crops."""

    def __init__(
        self, corpus: Corpus, mixture: Mixture, config: DataConfig, rows_per_batch: int
    ) -> None:
        self._reader = SampleReader(corpus)
        self._mixture = mixture
        self._config = config
        self._rows_per_batch = rows_per_batch
        self._threads = ThreadPoolExecutor(config.loader_threads, thread_name_prefix="decode")
        self._num_read = 0
        self._num_bad = 0

    def __call__(self, task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of the rows [start, stop) of each task."""
        for start, stop in zip(task["start"].tolist(), task["stop"].tolist(), strict=True):
            for first in range(start, stop, self._rows_per_batch):
                yield self._batch(first)

    def _batch(self, first: int) -> dict[str, np.ndarray]:
        side = self._config.augment.crop_px
        count = self._rows_per_batch
        image = np.zeros((count, side, side, 3), np.uint8)
        label = np.full((count, side, side), 255, np.uint8)
        rows = _rows(self._mixture, first, first + count)
        bad = np.array(list(self._threads.map(self._load, rows, image, label)))
        self._num_read += count
        self._num_bad += int(bad.sum())
        # A few bad samples in a short run say nothing about the share yet.
        if self._num_bad > max(3, self._config.max_bad_share * self._num_read):
            raise RuntimeError(
                f"{self._num_bad} of {self._num_read} samples do not decode, more than "
                f"data.max_bad_share={self._config.max_bad_share}: the log names each"
            )
        return {"image": image, "label": label, "t": first + np.arange(count), "bad": bad}

    def _load(self, row: Row, image: np.ndarray, label: np.ndarray) -> bool:
        """Fills one row of the batch in place; True when its sample is bad."""
        name = self._mixture.datasets[row.dataset]
        try:
            crop = random_crop(*self._reader.read(name, row.sample), row.seed, self._config.augment)
        except BadSample as error:
            logger.warning("left out: %s", error)
            return True
        image[:], label[:] = crop
        return False


class SampleReader:
    """Reads and decodes single samples of a corpus by dataset and index."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._storage: Storage = open_storage(corpus.uri)
        self._places: dict[str, list[tuple[ShardRecord, SampleRecord]]] = {
            name: [(shard, record) for shard in manifest.shards for record in shard.samples]
            for name, manifest in corpus.manifests.items()
        }

    def read(self, dataset: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: image (H, W, 3) uint8 RGB, label (H, W) uint8 ids in `Corpus.taxonomy`.

        Raises:
            BadSample: It does not decode; names shard and key.
        """
        shard, record = self._places[dataset][index]
        try:
            stored = read_sample(self._storage, dataset, self._corpus.split, shard, record)
            image, label = decode(stored.jpeg, stored.png)
        except ShardError as error:  # Damage outside the pictures; its message names the place.
            raise BadSample(str(error)) from None
        except BadSample as error:
            raise BadSample(f"{shard.name}, key {record.key}: {error}") from None
        lut = self._corpus.luts.get(dataset)
        return image, label if lut is None else lut[label]


def _rows(mixture: Mixture, first: int, stop: int) -> list[Row]:
    """Rows [first, stop) of the stream."""
    size = mixture.batch_size
    rows: list[Row] = []
    for batch in range(first // size, (stop - 1) // size + 1):
        rows.extend(mixture.batch(batch))
    offset = first - first // size * size
    return rows[offset : offset + stop - first]


class Timed:
    """Iterates batches and measures the time spent waiting for them."""

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self._batches = batches
        self.waited_s = 0.0
        """Seconds spent waiting since the value was last reset."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited_s += time.perf_counter() - began
