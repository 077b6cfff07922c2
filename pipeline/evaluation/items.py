"""The images of an evaluation, each with its label in stored ids; opened where they are read."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Reader, Source
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode
from pipeline.data.pixels.encode import decode_image
from pipeline.data.shards.format import (
    MANIFEST_NAME,
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    folder,
    read_sample,
)
from pipeline.data.taxonomy import IGNORE, lookup_table
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage


class UnreadableItem(ValueError):
    """An image or label that cannot be read; counted, reported, and left out."""


@dataclass(frozen=True)
class Item:
    """One image to score."""

    key: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    stored: np.ndarray
    """(H, W) uint8, ids that the part's `lut` maps to classes."""
    texts: tuple[str, ...] = ()
    """Prompts for this image; empty: what the part asks."""
    stratum: int = 0
    """Which of the part's matrices counts it: the class of an episode."""


BAD = (BadSample, ShardError, FileNotFoundError)
"""What readers raise over a single image."""


@dataclass(frozen=True)
class ItemSource(ABC):
    """A fixed, ordered set of images. Pickles; `open` connects to where they lie."""

    dataset: str
    """Name of the dataset or benchmark."""
    root: str
    """Place of the images: a folder or URI."""
    chosen: tuple[Any, ...]
    """What names each image to its reader, in order."""

    def __len__(self) -> int:
        return len(self.chosen)

    @abstractmethod
    def keys(self) -> Sequence[str]:
        """The name of each image, in order."""

    def fingerprint(self) -> str:
        """Hex digits that change with the images or their order; contents are not read for it."""
        return digest(self.dataset, self.root, self.keys())

    def described(self) -> dict[str, Any]:
        """The images as report.json and MLflow name them: name, digest, source, images."""
        digits, count = self.fingerprint(), len(self)
        return {"name": self.dataset, "digest": digits, "source": self.root, "images": count}

    @abstractmethod
    def connect(self) -> Any:
        """What reads the images: a reader or a storage."""

    @abstractmethod
    def read(self, connection: Any, position: int) -> Item:
        """Reads the image at a position; raises any of `BAD` where it is damaged."""

    def open(self) -> Callable[[int], Item]:
        """A function that reads the image at a position; raises UnreadableItem."""
        connection = self.connect()

        def read(position: int) -> Item:
            try:
                return self.read(connection, position)
            except BAD as error:
                raise UnreadableItem(str(error)) from None

        return read


@dataclass(frozen=True)
class ShardItems(ItemSource):
    """Images of prepared shards, with universal ids or, where they are stored, native ones."""

    manifest: Manifest
    native: bool

    def keys(self) -> Sequence[str]:
        """The samples' keys."""
        return [record.key for _, record in self._places()]

    def fingerprint(self) -> str:
        """Hex digits over the manifest and the choice among its samples."""
        return digest(self.manifest.fingerprint, self.chosen, self.native)

    def described(self) -> dict[str, Any]:
        """The shards, by the digest that their training has in MLflow."""
        place = f"{self.root.rstrip('/')}/{folder(self.dataset, self.manifest.split)}"
        found = {"digest": self.manifest.fingerprint, "source": f"{place}/{MANIFEST_NAME}"}
        return super().described() | found

    def connect(self) -> tuple[Storage, list[tuple[ShardRecord, SampleRecord]]]:
        """Opens the storage, and finds where the chosen samples lie in it."""
        return open_storage(self.root), self._places()

    def read(self, connection: Any, position: int) -> Item:
        """Reads a sample of a shard."""
        storage, places = connection
        shard, record = places[position]
        try:
            sample = read_sample(storage, self.dataset, self.manifest.split, shard, record)
            label = sample.native_png if self.native else sample.png
            if label is None:
                raise UserError(
                    f"shards={self.root}: {shard.name} holds no native labels, which this "
                    f"protocol needs: give roots.{self.dataset}, or convert with native labels"
                )
            num_classes = IGNORE if self.native else len(self.manifest.class_names)
            return Item(record.key, *decode(sample.jpeg, label, num_classes))
        except (ShardError, BadSample) as error:
            raise UnreadableItem(f"{shard.name}, key {record.key}: {error}") from None

    def _places(self) -> list[tuple[ShardRecord, SampleRecord]]:
        places = [(shard, record) for shard in self.manifest.shards for record in shard.samples]
        return [places[index] for index in self.chosen]


@dataclass(frozen=True)
class RootItems(ItemSource):
    """Images of an official download, as its reader lists and decodes them."""

    chosen: tuple[Source, ...]
    native: bool

    def keys(self) -> Sequence[str]:
        """The keys that the converted samples would have."""
        return [source.key for source in self.chosen]

    def fingerprint(self) -> str:
        """Hex digits over all that names the files."""
        return digest(self.dataset, self.root, [str(source) for source in self.chosen])

    def connect(self) -> Reader:
        """Opens the reader."""
        return open_reader(self.dataset, self.root)

    def read(self, connection: Reader, position: int) -> Item:
        """Decodes a file and its label."""
        source = self.chosen[position]
        pixels = decode_image(connection.root.read(source.image))
        label = connection.native_label(source)
        if label.shape != pixels.shape[:2]:
            raise UnreadableItem(f"{source.image}: image and label differ in size")
        if not self.native:
            # As a conversion without the annotators' decisions would store it.
            label = lookup_table(self.dataset, overridden=True)[label]
        return Item(source.key, np.ascontiguousarray(pixels[:, :, ::-1]), label)


def digest(*parts: object) -> str:
    """A fingerprint of plain values: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
