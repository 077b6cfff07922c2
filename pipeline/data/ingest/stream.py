"""Ray Data ingest: numbers of blocks in, uint8 batches out, in order; one stream for each node.

    numbers -> pool of loader actors -> blocks of one worker's batches -> the node's workers in turn

The plan is a pure function of the position, so only the numbers of blocks travel to the actors;
each computes its rows, reads the samples by byte range and cuts the crops. A source that makes the
numbers as they are used, `preserve_order`, and blocks of one row for Ray (in which all crops of the
block lie) make the split among the workers a strict rotation that costs the same at any length.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import (
    DataContext,
    Dataset,
    Datasource,
    ExecutionOptions,
    ExecutionResources,
    ReadTask,
)
from ray.data.block import BlockMetadata

from pipeline import monitoring
from pipeline.data.ingest.config import DataConfig as DataConfig
from pipeline.data.ingest.loader import CropLoader as CropLoader
from pipeline.data.ingest.loader import keep_freed_memory
from pipeline.data.ingest.loader import open_cache as open_cache
from pipeline.data.ingest.mixture import Mixture, Row, capped, resolve_weights
from pipeline.data.ingest.share import NodeShare, bytes_of_crop
from pipeline.data.shards.corpus import Corpus as Corpus
from pipeline.data.shards.corpus import SampleReader as SampleReader
from pipeline.data.shards.corpus import open_corpus as open_corpus
from pipeline.log_lines import log_as
from pipeline.ray_internals import limit_source, limit_waiting_blocks

NUMBERS_AHEAD = 32
"""Numbers of blocks that wait for a loader; far more than it takes between two looks of Ray."""
LOADED_AHEAD = 8
"""Blocks that may lie loaded in the object store for each worker and each loader of a node, so that
a long pause of a loader makes no worker wait."""
LEAST_AHEAD_MIB = 512
"""Memory for loaded blocks that a node always has: small ones are soon used."""
LOOK_EVERY_S = 0.1
"""Seconds between two looks of Ray at what the loaders have made; each has a task more in hand."""


def build_mixture(corpus: Corpus, config: DataConfig, batch_size: int, seed: int) -> Mixture:
    """The training stream over a corpus; see `Mixture`."""
    sizes = capped(corpus.sizes, config.caps)
    weights = resolve_weights(sizes, config.weights, config.temperature)
    return Mixture(corpus.sizes, weights, batch_size, seed, config.caps)


def node_stream(
    corpus: Corpus,
    mixture: Mixture,
    config: DataConfig,
    share: NodeShare,
    num_loaders: int,
    cpus: float,
    node: str = "",
) -> Dataset:
    """One node's share of the mixture as a Ray Dataset, for `batches_of` to read.

    Args:
        corpus: Where the samples lie.
        mixture: Which sample each row is.
        config: Augmentation, and the threads of a loader.
        share: The rows of the node.
        num_loaders: Loader actors.
        cpus: Logical CPUs that each holds.
        node: Id of the Ray node on which all of it runs; "" leaves it to Ray.
    """
    configure_context()
    stream = ray.data.read_datasource(
        BlockNumbers(share.num_blocks), override_num_blocks=1, num_cpus=0
    ).map_batches(
        BlockLoader,
        fn_constructor_args=(corpus, mixture, config, share),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=num_loaders),
        num_cpus=cpus,
    )
    ahead = bytes_ahead(share, num_loaders, config.augment.crop_px)
    stream.context.execution_options = execution_options(node, ahead)
    return stream


def bytes_ahead(share: NodeShare, num_loaders: int, crop_px: int) -> int:
    """Bytes of loaded blocks that may wait on a node for its workers.

    Loaders that are faster than the training would else fill Ray's whole part of the object store.
    """
    block = share.rows_per_batch * share.batches_per_block * bytes_of_crop(crop_px)
    return max(LEAST_AHEAD_MIB << 20, LOADED_AHEAD * (len(share.workers) + num_loaders) * block)


def execution_options(node: str = "", most_bytes: int = 0) -> ExecutionOptions:
    """Options that make the order of a stream reproducible, and keep it on one node.

    Args:
        node: Id of the Ray node; "" for any.
        most_bytes: Most bytes of its blocks in the object store; 0 leaves that to Ray.
    """
    where = {"ray.io/node-id": node} if node else None
    limits = ExecutionResources.for_limits(object_store_memory=most_bytes or None)
    return ExecutionOptions(preserve_order=True, label_selector=where, resource_limits=limits)


def configure_context() -> None:
    """Sets this process's DataContext so that each row for Ray becomes a block."""
    context = DataContext.get_current()
    # Ray closes a block as soon as it has more bytes than this, and never cuts a row.
    context.target_max_block_size = 1
    context.execution_options = execution_options()
    limit_waiting_blocks(context, NUMBERS_AHEAD)
    limit_source(context, NUMBERS_AHEAD, LOOK_EVERY_S)
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class BlockNumbers(Datasource):
    """The numbers 0, 1, 2, ... of blocks, each a block for Ray, made as they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all numbers."""
        return 8 * self._count

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task for all: a generator, which goes on when its numbers have been taken."""
        count = self._count
        metadata = BlockMetadata(num_rows=count, size_bytes=8 * count, **_UNKNOWN)
        return [ReadTask(lambda: (pa.table({"block": [n]}) for n in range(count)), metadata)]


_UNKNOWN: dict[str, Any] = {"input_files": None, "exec_stats": None}


class BlockLoader:
    """The actor that turns numbers of blocks into blocks of crops."""

    def __init__(
        self, corpus: Corpus, mixture: Mixture, config: DataConfig, share: NodeShare
    ) -> None:
        log_as("loader")
        keep_freed_memory()
        self._loader = CropLoader(corpus, mixture, config)
        self._mixture, self._share = mixture, share
        self._node = ray.get_runtime_context().get_node_id()
        for each in (
            monitoring.LOADED_BLOCKS,
            monitoring.LOADED_IMAGES,
            monitoring.LOADING_SECONDS,
        ):
            each.start()

    def __call__(self, task: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yields each block as one row for Ray; `unpacked` takes it apart."""
        count = self._share.rows_per_batch
        for number in task["block"].tolist():
            firsts = self._share.block(number)
            rows = self._mixture.rows_of([range(first, first + count) for first in firsts])
            # No name here holds a block, so that its memory serves again.
            yield self._packed(self._loaded(rows))

    def _loaded(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """The crops of a block, counted for Prometheus."""
        began = time.perf_counter()
        block = self._loader.load(rows)
        monitoring.LOADING_SECONDS.add(time.perf_counter() - began)
        monitoring.LOADED_BLOCKS.add()
        monitoring.LOADED_IMAGES.add(len(rows))
        return block

    def _packed(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A block as one row for Ray, which knows no arrays of texts, and packs bits."""
        problems = json.dumps(block.pop("problem").tolist())
        return {name: column[None] for name, column in block.items()} | {
            "bad": block["bad"][None].view(np.uint8),
            "problems": np.array([problems], object),
            "node": np.array([self._node], object),
        }


def batches_of(consumer: ray.data.DataIterator, rows_per_batch: int) -> Iterator[dict[str, Any]]:
    """The batches of one worker's part of a stream: views into Ray's memory, which is only read.

    Yields:
        What `CropLoader.load` returns, of `rows_per_batch` rows, and `node`: the id of the Ray node
        that made it.
    """
    # Whole blocks: no row is copied.
    blocks: Any = consumer.iter_batches(batch_size=None, prefetch_batches=1)  # type: ignore[arg-type]
    for block in blocks:
        for row in range(len(block["node"])):
            yield from unpacked(block, row, rows_per_batch)


def unpacked(block: dict[str, Any], row: int, rows_per_batch: int) -> Iterator[dict[str, Any]]:
    """The batches in one row that a `BlockLoader` made."""
    columns = {name: block[name][row] for name in ("image", "label", "t", "crc32")}
    columns["bad"] = block["bad"][row].view(bool)
    columns["problem"] = np.array(json.loads(block["problems"][row]), object)
    count, node = len(columns["t"]), block["node"][row]
    if not count or count % rows_per_batch:
        raise RuntimeError(f"the ingest gave a block of {count} rows, not {rows_per_batch} each")
    for at in range(0, count, rows_per_batch):
        yield {name: each[at : at + rows_per_batch] for name, each in columns.items()} | {
            "node": node
        }


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
