"""The samples of one split over all datasets: where they lie, and reading single ones.

A sample is one byte range of a shard. Shards in S3 are kept on the node's disk by `ShardCache` as
they are used; local ones are read where they are.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.pixels.decode import decode
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.format import (
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    StoredSample,
    find_manifests,
    folder,
    misplaced,
    parse_sample,
)
from pipeline.data.shards.union import ids_in, union_of
from pipeline.data.taxonomy import Taxonomy
from pipeline.errors import UserError
from pipeline.storage.base import ObjectError, Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)


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


class SampleReader:
    """Reads single samples of a corpus by dataset and index; threads may share one.

    Copies of remote shards are kept in the cache; local ones are read in place.
    """

    def __init__(self, corpus: Corpus, cache: ShardCache | None = None) -> None:
        self._corpus = corpus
        self._storage: Storage = open_storage(corpus.uri)
        self._cache = None if isinstance(self._storage, LocalStorage) else cache
        self._places: dict[str, list[tuple[ShardRecord, SampleRecord]]] = {
            name: [(shard, record) for shard in manifest.shards for record in shard.samples]
            for name, manifest in corpus.manifests.items()
        }

    def read(self, dataset: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: image (H, W, 3) uint8 RGB, label (H, W) uint8 ids in `Corpus.taxonomy`.

        Raises:
            BadSample: It does not decode; names shard and key.
            UserError: The storage does not answer.
        """
        stored = self.read_stored(dataset, index)
        try:
            with bad_sample_errors("the sample"):
                image, label = decode(stored.jpeg, stored.png, self.num_classes(dataset))
        except BadSample as error:
            raise BadSample(f"{self.name_of(dataset, index)}: {error}") from None
        return image, self.translated(dataset, label)

    def num_classes(self, dataset: str) -> int:
        """How many classes the stored ids of a dataset are positions in."""
        return len(self._corpus.manifests[dataset].class_names)

    def translated(self, dataset: str, label: np.ndarray) -> np.ndarray:
        """Stored ids, (H, W) uint8, as ids in `Corpus.taxonomy`; itself where they are the same."""
        lut = self._corpus.luts.get(dataset)
        return label if lut is None else cv2.LUT(label, lut)

    def read_stored(self, dataset: str, index: int) -> StoredSample:
        """The members of one sample, checked against the manifest's checksum.

        Raises:
            BadSample: What is stored is not that sample; names shard and key.
            UserError: The storage does not answer.
        """
        shard, record = self._places[dataset][index]
        path = f"{folder(dataset, self._corpus.split)}/{shard.name}"
        where = self.name_of(dataset, index)
        if reason := misplaced(shard, record):
            raise BadSample(f"{where}: {reason}")
        if self._cache:
            data = self._cache.read(self._storage, path, shard, record.offset, record.length)
            if data is not None:
                try:
                    return parse_sample(data, where, record)
                except ShardError as error:
                    logger.warning("the copy of %s on this node is damaged: %s", path, error)
                    self._cache.discard(shard)
        reason = ""
        for _ in range(2):  # What a network or a disk garbled is seldom garbled twice.
            try:
                data = self._storage.read_range(path, record.offset, record.length)
                return parse_sample(data, where, record)
            except FileNotFoundError:
                reason = f"{where}: there is no such shard"
            except ShardError as error:
                reason = str(error)
            except ObjectError as error:
                raise BadSample(f"{where}: {error}") from None
            except UserError:
                if not self._is_short(path, record):
                    raise
                reason = f"{where}: the shard is cut short"
        raise BadSample(reason)

    def _is_short(self, path: str, record: SampleRecord) -> bool:
        try:
            return self._storage.size(path) < record.offset + record.length
        except FileNotFoundError:  # A link that leads to itself, for example.
            return True

    def name_of(self, dataset: str, index: int) -> str:
        """Shard and key of a sample, for messages."""
        shard, record = self._places[dataset][index]
        return f"{folder(dataset, self._corpus.split)}/{shard.name}, key {record.key}"
