"""Chooses stored samples that show many classes, and shrinks them for a page."""

import logging
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.pixels.decode import decode
from pipeline.data.pixels.encode import encode_jpeg
from pipeline.data.shards.format import (
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    StoredSample,
    finished_splits,
    load_manifest,
    read_sample,
)
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError, did_you_mean
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

_CANDIDATES = 4
"""Samples that are read for each one that is shown."""
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class PreviewImage:
    """A sample, shrunk for the page."""

    key: str
    source: str
    """Path of the image in the download."""
    original_size: tuple[int, int]
    """Height and width of the source image."""
    jpeg: bytes
    label: np.ndarray
    """(H, W) uint8, universal ids or IGNORE; as large as the image."""
    classes: tuple[int, ...]
    """Universal ids in the label before it was shrunk."""


@dataclass(frozen=True)
class Chapter:
    """What a page shows of one split of a dataset."""

    manifest: Manifest
    images: tuple[PreviewImage, ...]


def load_chapters(
    uri: str,
    datasets: tuple[str, ...] | None,
    splits: tuple[str, ...] | None,
    count: int,
    long_side_px: int,
    seed: int,
) -> list[Chapter]:
    """Reads what a page shows: `count` images of each split; another seed shows others.

    Without datasets or splits, all that are finished are taken.

    Raises:
        UserError: There is nothing such, or the storage fails.
    """
    storage = open_storage(uri)
    finished = finished_splits(storage)
    if not finished:
        raise UserError(
            f"shards={uri}: no <dataset>/<split>/manifest.json below it: give the folder that "
            "prepare_shards.py wrote to the end"
        )
    for option, wanted, there in (
        ("datasets", datasets, sorted({dataset for dataset, _ in finished})),
        ("splits", splits, sorted({split for _, split in finished})),
    ):
        for name in wanted or ():
            if name not in there:
                raise UserError(
                    f"{option}={name!r}: not in {uri}, which has {', '.join(there)}"
                    + did_you_mean(name, there)
                )
    chapters = []
    for dataset, split in finished:
        if (datasets is None or dataset in datasets) and (splits is None or split in splits):
            manifest = load_manifest(storage, dataset, split)
            logger.info("%s/%s: choosing %d images", dataset, split, count)
            chosen = _choose(storage, manifest, count, seed)
            images = tuple(_shrink(*sample, long_side_px) for sample in chosen)
            chapters.append(Chapter(manifest, images))
    if not chapters:
        raise UserError(f"shards={uri}: has none of these datasets in these splits")
    return chapters


_Decoded = tuple[StoredSample, np.ndarray, np.ndarray, tuple[int, ...]]
"""A sample, its image (H, W, 3) uint8 RGB, its label (H, W) uint8, and the ids in that."""


def _choose(storage: Storage, manifest: Manifest, count: int, seed: int) -> list[_Decoded]:
    """Picks, among four times as many random samples, those that show the most new classes."""
    places = [(shard, record) for shard in manifest.shards for record in shard.samples]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(places))[: count * _CANDIDATES].tolist()
    candidates = [_read(storage, manifest, *places[i]) for i in order]
    left = [sample for sample in candidates if sample is not None]
    shown: Counter[int] = Counter()
    chosen: list[_Decoded] = []
    while left and len(chosen) < count:
        gains = [sum(1 / (1 + shown[i]) ** 2 for i in ids) for *_, ids in left]
        best = left.pop(int(np.argmax(gains)))
        shown.update(best[-1])
        chosen.append(best)
    return chosen


def _read(
    storage: Storage, manifest: Manifest, shard: ShardRecord, record: SampleRecord
) -> _Decoded | None:
    try:
        stored = read_sample(storage, manifest.dataset, manifest.split, shard, record)
        with bad_sample_errors("the sample"):
            image, label = decode(stored.jpeg, stored.png, len(manifest.class_names))
        return stored, image, label, tuple(i for i in np.unique(label).tolist() if i != IGNORE)
    except (ShardError, BadSample, FileNotFoundError) as error:
        logger.warning("%s, %s: left out of the page: %s", shard.name, record.key, error)
        return None


def _shrink(
    stored: StoredSample,
    image: np.ndarray,
    label: np.ndarray,
    ids: tuple[int, ...],
    long_side_px: int,
) -> PreviewImage:
    height, width = label.shape
    scale = min(1.0, long_side_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return PreviewImage(
        key=stored.key,
        source=str(stored.meta.get("source", "")),
        original_size=_original_size(stored) or (height, width),
        jpeg=encode_jpeg(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), _JPEG_QUALITY),
        label=cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
        classes=ids,
    )


def _original_size(stored: StoredSample) -> tuple[int, int] | None:
    match stored.meta.get("original_size"):
        case [int(height), int(width)]:
            return height, width
    return None
