"""Ray Data ingest: stream positions in, uint8 batches out, in order.

    positions -> pool of CropLoader actors -> one block a batch -> the workers in turn

The plan is a pure function of the position, so only positions travel to the actors; each computes
its rows, reads the samples by byte range and cuts the crops. `preserve_order` and blocks of equal
length make the split among the workers a strict rotation: worker r of N gets batches r, r + N, ...
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from isal import isal_zlib
from ray.data import DataContext, Dataset, ExecutionOptions

from pipeline.data.ingest.augment import load_crop
from pipeline.data.ingest.config import DataConfig as DataConfig
from pipeline.data.ingest.mixture import Mixture, Row, capped, resolve_weights
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.shards.cache import ShardCache, default_folder
from pipeline.data.shards.corpus import Corpus as Corpus
from pipeline.data.shards.corpus import SampleReader as SampleReader
from pipeline.data.shards.corpus import open_corpus as open_corpus
from pipeline.data.taxonomy import IGNORE
from pipeline.ray_internals import limit_waiting_blocks

logger = logging.getLogger(__name__)

_Loaded = tuple[int, str]
"""CRC-32 of a stored sample, and what is wrong with it, if anything."""

BATCHES_PER_TASK = 8
"""Batches that one call to a loader actor makes; large enough to hide Ray's cost of a call."""
BATCHES_AHEAD = 2
"""Batches that a loader decodes while it hands another one to Ray."""
BATCHES_WAITING = 8
"""Finished batches that a loader may hold before they are fetched; with fewer it stalls."""


def build_mixture(corpus: Corpus, config: DataConfig, batch_size: int, seed: int) -> Mixture:
    """The training stream over a corpus; see `Mixture`."""
    sizes = capped(corpus.sizes, config.caps)
    weights = resolve_weights(sizes, config.weights, config.temperature)
    return Mixture(corpus.sizes, weights, batch_size, seed, config.caps)


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
        A dataset whose blocks of `rows_per_batch` rows are `image` (B, H, W, 3) uint8, `label`
        (B, H, W) uint8, `t` (B,) int64 (position in the stream), `crc32` (B,) int64 (of the stored
        image and label), `bad` (B,) bool (replaced by a blank, because the stored sample does not
        decode), `problem` (B,) str (shard, key and reason of a bad one, else "").
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


def batches_of(consumer: ray.data.DataIterator, rows_per_batch: int) -> Iterator[dict[str, Any]]:
    """The batches of one worker's part of a stream: views into Ray's memory, which is only read."""
    # Whole blocks, which are whole batches: no row is copied.
    blocks: Any = consumer.iter_batches(batch_size=None, prefetch_batches=2)  # type: ignore[arg-type]
    for batch in blocks:
        if len(batch["t"]) != rows_per_batch:
            raise RuntimeError(
                f"the ingest gave a block of {len(batch['t'])} rows, not {rows_per_batch}"
            )
        yield batch


def execution_options() -> ExecutionOptions:
    """Options that make the order of the stream, and its split among workers, reproducible."""
    return ExecutionOptions(preserve_order=True)


def configure_context(crop_px: int, rows_per_batch: int) -> None:
    """Sets this process's DataContext so that each batch of a loader becomes one block."""
    context = DataContext.get_current()
    # A block closes once it exceeds the target, and is cut in two from 1.5 times the target.
    context.target_max_block_size = rows_per_batch * crop_px * crop_px * 4
    context.execution_options = execution_options()
    limit_waiting_blocks(context, BATCHES_WAITING)
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class CropLoader:
    """The actor that turns stream positions into batches of crops."""

    def __init__(
        self, corpus: Corpus, mixture: Mixture, config: DataConfig, rows_per_batch: int
    ) -> None:
        self._reader = SampleReader(corpus, open_cache(config, corpus.uri))
        self._mixture = mixture
        self._config = config
        self._rows_per_batch = rows_per_batch
        self._threads = ThreadPoolExecutor(config.loader_threads, thread_name_prefix="decode")

    def __call__(self, task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of the rows [start, stop) of each task."""
        firsts = [
            first
            for start, stop in zip(task["start"].tolist(), task["stop"].tolist(), strict=True)
            for first in range(start, stop, self._rows_per_batch)
        ]
        # The threads decode the next batches while one is handed to Ray.
        ahead: deque[tuple[int, dict[str, np.ndarray], list[Future[_Loaded]]]] = deque()
        for first in firsts:
            ahead.append((first, *self._begin(first)))
            if len(ahead) > BATCHES_AHEAD:
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _begin(self, first: int) -> tuple[dict[str, np.ndarray], list[Future[_Loaded]]]:
        side = self._config.augment.crop_px
        count = self._rows_per_batch
        image = np.zeros((count, side, side, 3), np.uint8)
        label = np.full((count, side, side), IGNORE, np.uint8)
        rows = self._mixture.rows(first, first + count)
        loading = [
            self._threads.submit(self._load, *job) for job in zip(rows, image, label, strict=True)
        ]
        return {"image": image, "label": label}, loading

    def _finish(
        self, first: int, batch: dict[str, np.ndarray], loading: list[Future[_Loaded]]
    ) -> dict[str, np.ndarray]:
        checksums, problems = zip(*(loaded.result() for loaded in loading), strict=True)
        bad = np.array([bool(problem) for problem in problems])
        return batch | {
            "t": first + np.arange(len(bad)),
            "crc32": np.array(checksums, np.int64),
            "bad": bad,
            "problem": np.array(problems, dtype=object),
        }

    def _load(self, row: Row, image: np.ndarray, label: np.ndarray) -> _Loaded:
        """Fills one row of the batch in place; says what is wrong with a bad sample."""
        name = self._mixture.datasets[row.dataset]
        try:
            stored = self._reader.read_stored(name, row.sample)
        except BadSample as error:
            return 0, str(error)
        try:
            # Whatever a decoder raises: another attempt would only meet the same sample again.
            with bad_sample_errors("the sample"):
                num_classes = self._reader.num_classes(name)
                crop = image, label, num_classes
                load_crop(stored.jpeg, stored.png, row.seed, self._config.augment, *crop)
        except BadSample as error:
            # A surprise may have come when a part of the crop was written.
            image[:], label[:] = 0, IGNORE
            return 0, f"{self._reader.name_of(name, row.sample)}: {error}"
        label[:] = self._reader.translated(name, label)
        return isal_zlib.crc32(stored.png, isal_zlib.crc32(stored.jpeg)), ""


def open_cache(config: DataConfig, uri: str) -> ShardCache | None:
    """The node's cache of shards, where the configuration and the place of the shards want one."""
    if "://" not in uri or not config.cache_gib:
        return None
    folder = Path(config.cache_dir) if config.cache_dir else default_folder()
    return ShardCache(folder, int(config.cache_gib * 2**30))


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
