"""Converts work units: one unit is one shard, a fixed slice of a dataset's sorted listing.

What a unit writes depends on its sources and settings alone, so any number of workers gives the
same bytes, and a finished unit is recognised by its fingerprint. Until the manifest is written each
finished shard has a record beside it (`<shard>.json`), which a restarted conversion trusts instead
of the work; the manifest takes the records over, and then they are deleted.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut, NoAccess, Reader, Source
from pipeline.data.datasets.few_shot.training import PairsOfClass, reopen
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.pixels.checks import BadSample, reason_of
from pipeline.data.pixels.encode import (
    decode_image,
    encode_jpeg,
    encode_label,
    exif_orientation,
    keep_jpeg,
    resize_image,
    resize_label,
    shrunk_size,
)
from pipeline.data.prepare.relabel import relabel
from pipeline.data.shards.format import (
    FORMAT_VERSION,
    EncodedSample,
    ShardRecord,
    ShardWriter,
    folder,
    shard_name,
)
from pipeline.data.taxonomy import IGNORE
from pipeline.data.taxonomy.labelling import Labelling
from pipeline.errors import UserError, printable
from pipeline.spread import Death, Workers
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

RECORD_SUFFIX = ".json"
"""A finished shard's record is named as the shard, plus this."""
EXIF_ORIENTATION = "exif_orientation"
"""In a sample's JSON: how the user's own image asked to be shown, where that is not as stored."""
WORKER_DEATHS = 4
"""A unit whose worker died so often is given up."""


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Everything besides the sources that decides which bytes are stored."""

    short_side_px: int
    jpeg_quality: int
    samples_per_shard: int
    taxonomy_fingerprint: str
    table: str
    """The dataset's table from native to universal ids, as `lookup_table` takes it."""
    lookup: str
    """Fingerprint of what turns native ids into stored ones."""
    native: bool = False
    """Whether native ids are stored too."""
    relabel: str = ""
    """Fingerprint of the relabelling."""
    train_long_side: int = 0
    """Long side of images that are well above it; 0 in splits that keep theirs."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as manifests and records hold them."""
        values = dataclasses.asdict(self)
        if not self.train_long_side:  # As before there was any: equal fingerprints.
            del values["train_long_side"]
        return values


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One shard to write; travels to the worker, which opens the storages there."""

    dataset: str
    split: str
    root: str
    """URI of the dataset's root."""
    out: str
    """URI of the shards' root."""
    settings: ConvertSettings
    labelling: Labelling
    """What the stored labels mean."""
    own: OwnDataset | PairsOfClass | None = None
    """How to open the dataset if it is one of the user's own, or a class of a benchmark."""
    index: int = 0
    """The shard's number within the split."""
    sources: tuple[Source, ...] = ()
    fingerprint: str = ""
    """Identifies all that the shard is made from; see `fingerprint_sources`."""

    @property
    def path(self) -> str:
        """Where the shard lies, relative to `out`."""
        return f"{folder(self.dataset, self.split)}/{self.name}"

    @property
    def name(self) -> str:
        """The shard's file name."""
        return shard_name(self.dataset, self.split, self.index)


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit."""

    fingerprint: str
    settings: dict[str, Any]
    shard: ShardRecord | None
    """The shard; None when no sample of the unit was usable, and no file was written."""
    class_pixels: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    relabelled: tuple[int, int] = (0, 0)
    """Decisions of the relabelling that changed pixels, and those that found none."""
    native_pixels: tuple[int, ...] = ()
    """Pixels of each of the 256 native ids, where the reader has remarks on them."""
    turned: tuple[str, ...] = ()
    """The user's own images whose EXIF asks for another view than the stored one."""

    def to_json(self) -> str:
        """The record that lies beside a finished shard."""
        values = dict(vars(self))
        values["shard"] = self.shard.to_dict() if self.shard else None
        values["left_out"] = [[bad.name, bad.reason] for bad in self.left_out]
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "UnitResult":
        """The inverse of `to_json`; KeyError, TypeError or ValueError when it is not one."""
        values = json.loads(text)
        shard = values["shard"]
        return cls(
            fingerprint=values["fingerprint"],
            settings=dict(values["settings"]),
            shard=ShardRecord.from_dict(shard) if shard else None,
            class_pixels=tuple(map(int, values["class_pixels"])),
            left_out=tuple(LeftOut(name, reason) for name, reason in values["left_out"]),
            relabelled=(int(values["relabelled"][0]), int(values["relabelled"][1])),
            native_pixels=tuple(map(int, values.get("native_pixels", ()))),
            turned=tuple(map(str, values.get("turned", ()))),
        )


def make_units(blank: Unit, sources: tuple[Source, ...], sizes: dict[str, int]) -> list[Unit]:
    """Cuts a listing into units.

    Args:
        blank: A unit without sources: how and where to convert the split.
        sources: All samples, sorted by key.
        sizes: Bytes of the source files by path; a file that changed its size is converted anew.
    """
    settings = blank.settings.to_dict()
    step = blank.settings.samples_per_shard
    units = []
    for index, start in enumerate(range(0, len(sources), step)):
        part = sources[start : start + step]
        context = (FORMAT_VERSION, blank.dataset, blank.split, index, settings)
        digest = fingerprint_sources(part, sizes, *context)
        units.append(dataclasses.replace(blank, index=index, sources=part, fingerprint=digest))
    return units


def fingerprint_sources(sources: Iterable[Source], sizes: dict[str, int], *context: object) -> str:
    """16 hex digits over the sources, the sizes of their files, and whatever else is given."""
    digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode())
    for source in sources:
        image = source.image, sizes.get(source.image, -1)
        row = (source.key, *image, source.label, sizes.get(source.label, -1), source.extra)
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]


def convert_sample(
    reader: Reader, source: Source, unit: Unit, native_pixels: np.ndarray | None = None
) -> tuple[EncodedSample, np.ndarray, tuple[int, int]]:
    """Reads, checks, maps, shrinks and encodes one sample.

    The pixels of its native ids are added to `native_pixels`, (256,) int64, where that is given.

    Returns:
        The sample, the pixels of each of the 256 label ids in it, and what `relabel` returns.

    Raises:
        BadSample: It cannot be used.
        UserError: The storage fails, which is not the sample's fault.
    """
    data = reader.read(source.image, "the image file is missing")
    image = None
    sides = unit.settings.short_side_px, unit.settings.train_long_side
    if kept := keep_jpeg(data, *sides):
        jpeg, original = kept
    else:
        jpeg, image = b"", decode_image(data)
        original = image.shape[0], image.shape[1]
    native = _read_label(reader, source)
    if native.ndim != 2 or native.dtype != np.uint8:
        raise BadSample(f"the label is {native.dtype} of shape {native.shape}, not 8-bit ids")
    if original != native.shape:
        (height, width), (label_height, label_width) = original, native.shape
        raise BadSample(
            f"the image is {width}x{height} pixels, its label {label_width}x{label_height}"
        )
    if native_pixels is not None:
        native_pixels += count_ids(native)
    label = cv2.LUT(native, unit.labelling.table)
    relabelled = relabel(label, native, reader, source)
    size = shrunk_size(*original, *sides)
    if size != original:
        label, native = resize_label(label, size), resize_label(native, size)
        assert image is not None  # `keep_jpeg` keeps none that must shrink.
        image = resize_image(image, size)
    if image is not None:
        jpeg = encode_jpeg(image, unit.settings.jpeg_quality)
    id_pixels = count_ids(label)
    meta = {
        "dataset": unit.dataset,
        "split": unit.split,
        "source": source.image,
        "original_size": list(original),
        "classes": [int(i) for i in np.flatnonzero(id_pixels) if i != IGNORE],
    }
    # The official datasets' labels fit the stored pixels; who drew a user's saw the turned view.
    if isinstance(unit.own, OwnDataset) and (turn := exif_orientation(data)) != 1:
        meta[EXIF_ORIENTATION] = turn
    native_png = encode_label(native) if unit.settings.native else None
    encoded = EncodedSample(
        source.key, jpeg, encode_label(label), meta, native_png, height=size[0], width=size[1]
    )
    return encoded, id_pixels, relabelled


def count_ids(label: np.ndarray) -> np.ndarray:
    """Counts the pixels of each id in (H, W) uint8: (256,) int64."""
    # Ten times as fast as np.bincount, but it counts in float32, which is exact below 2**24.
    counts = np.zeros(256, np.int64)
    rows = max(1, (1 << 23) // label.shape[1])
    for top in range(0, label.shape[0], rows):
        part = cv2.calcHist([label[top : top + rows]], [0], None, [256], [0, 256])
        counts += part.reshape(256).astype(np.int64)
    return counts


def convert_unit(unit: Unit) -> UnitResult:
    """Writes one shard and its record.

    Raises:
        UserError: A storage fails.
    """
    cv2.setNumThreads(1)  # The units are the parallelism; more threads only fight over cores.
    out = open_storage(unit.out)
    reader = _open_once(unit.dataset, unit.root, unit.own)
    totals, relabelled = np.zeros(256, np.int64), np.zeros(2, np.int64)
    native_pixels = np.zeros(256, np.int64) if has_remarks(reader) else None
    left_out: list[LeftOut] = []
    turned: list[str] = []
    is_final = True
    with ShardWriter(out, unit.dataset, unit.split, unit.index) as writer:
        for source in unit.sources:
            try:
                sample = _converted(reader, source, unit, native_pixels)
            except BadSample as error:
                left_out.append(LeftOut(printable(source.image), printable(str(error))))
                is_final = is_final and not isinstance(error, NoAccess)
                continue
            encoded, id_pixels, decisions = sample
            writer.write(encoded)
            totals += id_pixels
            relabelled += decisions
            if EXIF_ORIENTATION in encoded.meta:
                turned.append(printable(source.image))
        shard = writer.finish() if len(left_out) < len(unit.sources) else None
    result = UnitResult(
        unit.fingerprint,
        unit.settings.to_dict(),
        shard,
        tuple(totals[: len(unit.labelling.taxonomy.classes)].tolist()),
        tuple(left_out),
        (int(relabelled[0]), int(relabelled[1])),
        () if native_pixels is None else tuple(native_pixels.tolist()),
        tuple(turned),
    )
    # Access may be given before the next run: the unit is then done again.
    if is_final:
        out.write(unit.path + RECORD_SUFFIX, result.to_json().encode())
    return result


def has_remarks(reader: Reader) -> bool:
    """Whether a reader says anything of the ids that all labels of a split have together."""
    return type(reader).remarks is not Reader.remarks


def _converted(
    reader: Reader, source: Source, unit: Unit, native_pixels: np.ndarray | None
) -> tuple[EncodedSample, np.ndarray, tuple[int, int]]:
    """One sample, where any surprise over its files is that of a bad sample."""
    try:
        return convert_sample(reader, source, unit, native_pixels)
    except (BadSample, UserError):
        raise
    except Exception as error:
        # One odd file must not end the whole job; a defect of ours would make too many of them.
        logger.warning("%s: %s", source.image, type(error).__name__, exc_info=True)
        raise BadSample(f"{type(error).__name__}: {reason_of(error)}") from error


def convert_units(units: list[Unit], workers: int | None) -> Iterator[tuple[Unit, UnitResult]]:
    """Converts units on Ray workers, and yields each unit with its result as it finishes.

    A unit whose worker dies is done again, a few times. The others are done meanwhile, and after
    them the ones that could not be done are an error. Without a number of workers, every CPU of
    the cluster is taken.

    Raises:
        UserError: A storage fails, or units killed their workers again and again.
        RuntimeError: A defect of ours, with the worker's traceback.
    """
    given_up = []

    def on_death(death: Death) -> bool:
        if death.of_item < WORKER_DEATHS:
            return True
        given_up.append(units[death.index].name)
        return False

    with Workers(lambda: _convert, workers, on_death=on_death) as pool:
        for index, result in pool.run(units):
            yield units[index], result
    if given_up:
        raise UserError(
            f"{', '.join(given_up[:5])}{' ...' if len(given_up) > 5 else ''}: their workers died "
            f"{WORKER_DEATHS} times, most likely for lack of memory: lower workers or give the "
            "nodes more memory, then start again; all other shards are kept"
        )


def _convert(unit: Unit) -> UnitResult:
    """What a worker applies to each unit; nothing is kept between units but open readers."""
    try:
        return convert_unit(unit)
    except OSError as error:
        raise UserError(
            f"{unit.out}/{unit.path}: {error}: see to the disk of the worker or the output"
        ) from None
    except Exception as error:
        error.add_note(f"while converting {unit.name}")
        raise


@functools.lru_cache(maxsize=8)
def _open_once(dataset: str, root: str, own: OwnDataset | PairsOfClass | None) -> Reader:
    # One per worker process: opening one may list files or parse large annotations.
    if isinstance(own, PairsOfClass):
        return reopen(own)
    return open_own(dataset, own) if own else open_reader(dataset, root)


def _read_label(reader: Reader, source: Source) -> np.ndarray:
    try:
        return reader.native_label(source)
    except (BadSample, UserError):
        raise
    except Exception as error:  # A reader's surprise over one file must not end the whole job.
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise BadSample(f"{source.label}: {reason}") from error
