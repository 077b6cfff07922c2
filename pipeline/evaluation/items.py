"""The pictures of an evaluation, each with its label in stored ids; opened where they are read."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Source
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode
from pipeline.data.pixels.encode import decode_image
from pipeline.data.shards.format import Manifest, ShardError, read_sample
from pipeline.data.taxonomy import lookup_table
from pipeline.errors import UserError
from pipeline.storage.open import open_storage


class UnreadableItem(ValueError):
    """A picture or label that cannot be read; counted, reported, and left out."""


@dataclass(frozen=True)
class Item:
    """One picture to score."""

    key: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    stored: np.ndarray
    """(H, W) uint8, ids that the part's `lut` maps to classes."""
    texts: tuple[str, ...] = ()
    """What to ask for this picture; empty: what the part asks."""
    stratum: int = 0
    """Which of the part's matrices counts it: the class of an episode."""


class ItemSource(ABC):
    """A fixed, ordered set of pictures. Pickles; `open` connects to where they lie."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def keys(self) -> Sequence[str]:
        """The name of each picture, in order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digits that change with the pictures or their order."""

    @abstractmethod
    def open(self) -> Callable[[int], Item]:
        """A function that reads the picture at a position; raises UnreadableItem."""


@dataclass(frozen=True)
class ShardItems(ItemSource):
    """Pictures of prepared shards, with universal ids or, where they are stored, native ones."""

    uri: str
    manifest: Manifest
    indices: tuple[int, ...]
    native: bool

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self) -> Sequence[str]:
        """The samples' keys."""
        records = [record for shard in self.manifest.shards for record in shard.samples]
        return [records[index].key for index in self.indices]

    def fingerprint(self) -> str:
        """That of the manifest and of the choice among its samples."""
        return digest(self.manifest.fingerprint, self.indices, self.native)

    def open(self) -> Callable[[int], Item]:
        """Connects to the shards."""
        storage = open_storage(self.uri)
        dataset, split = self.manifest.dataset, self.manifest.split
        places = [(shard, record) for shard in self.manifest.shards for record in shard.samples]

        def read(position: int) -> Item:
            shard, record = places[self.indices[position]]
            try:
                sample = read_sample(storage, dataset, split, shard, record)
                label = sample.native_png if self.native else sample.png
                if label is None:
                    raise UserError(
                        f"shards={self.uri}: {shard.name} holds no native labels, which this "
                        f"protocol needs: give roots.{dataset}, or convert with native labels"
                    )
                return Item(record.key, *decode(sample.jpeg, label))
            except (ShardError, BadSample) as error:
                raise UnreadableItem(f"{shard.name}, key {record.key}: {error}") from None

        return read


@dataclass(frozen=True)
class RootItems(ItemSource):
    """Pictures of an official download, as its reader lists and decodes them."""

    dataset: str
    root: str
    sources: tuple[Source, ...]
    native: bool

    def __len__(self) -> int:
        return len(self.sources)

    def keys(self) -> Sequence[str]:
        """The keys that the converted samples would have."""
        return [source.key for source in self.sources]

    def fingerprint(self) -> str:
        """Of the files' names; contents are not read for it."""
        return digest(self.dataset, self.root, [str(source) for source in self.sources])

    def open(self) -> Callable[[int], Item]:
        """Opens the reader."""
        reader = open_reader(self.dataset, self.root)

        def read(position: int) -> Item:
            source = self.sources[position]
            try:
                pixels = decode_image(reader.root.read(source.image))
                label = reader.native_label(source)
            except (BadSample, FileNotFoundError) as error:
                raise UnreadableItem(str(error)) from None
            if label.shape != pixels.shape[:2]:
                raise UnreadableItem(f"{source.image}: picture and label differ in size")
            image = np.ascontiguousarray(pixels[:, :, ::-1])
            return Item(source.key, image, label if self.native else self._universal(label))

        return read

    def _universal(self, label: np.ndarray) -> np.ndarray:
        # As a conversion without the annotators' decisions would store it.
        return lookup_table(self.dataset, overridden=True)[label]


def spread(size: int, limit: int) -> tuple[int, ...]:
    """Up to `limit` positions, evenly over `size`; all where the limit is 0."""
    count = min(size, limit or size)
    return tuple(i * size // count for i in range(count))


def digest(*parts: object) -> str:
    """16 hex digits over plain values."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
