"""MSeg's relabelling: decisions that segments of a class are of another universal class.

Two forms are read. Flat tables, `<dataset>.tsv` or `.tsv.gz`, have the columns split, parent (the
image's folder), image_stem, segment_id, native_class and new_universal_name. A checkout of mseg-api
holds lists in `mseg/relabeled_data/`, a line a segment: "mapillary_", or "seq" and the parent, then
the stem, the segment id; `taxonomy/relabel_files.tsv` says what each list decides.

What a segment id is differs by dataset; its reader knows (`Reader.segment_masks`). SUN RGB-D's are
classes counted from 0. Only pixels that still carry the native class change: a polygon's pixels
that later objects cover are theirs.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.data.datasets.base import Listing, Reader, Source, has_folders
from pipeline.data.datasets.sunrgbd_layouts import NUM_TEST
from pipeline.data.taxonomy import IGNORE, native_table, read_tsv, universal
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

DECISIONS = "relabel"
"""Where `Source.extra` keeps the decisions over an image."""

_COLUMNS = ("split", "image_stem", "segment_id", "native_class", "new_universal_name")
_NOTHING = ("unlabeled", "")
_FILES = "mseg/relabeled_data"
_LINE = re.compile(
    r"(?:mapillary_|seq(?P<parent>[^_]+)_)?(?P<stem>.+)_(?P<segment>\d+)\.(?:png|jpg|jpeg)"
)
_MSEG_KEYS = {
    "ade20k": "ade20k",
    "ade20k-v1": "ade20k",
    "bdd": "bdd100k",
    "cityscapes": "cityscapes",
    "cocop": "coco_panoptic",
    "cocopanoptic": "coco_panoptic",
    "cocopanoptic-v1": "coco_panoptic",
    "idd": "idd",
    "mapillary-public65": "mapillary",
    "sunrgbd": "sunrgbd",
}
_NEEDS_PARENT = frozenset({"idd"})
"""Datasets whose image names repeat from folder to folder."""
_MAX_TABLE_BYTES = 1 << 28

_Key = tuple[str, str, str]
Decision = tuple[int, tuple[int, ...], int]
"""Segment id, the native ids whose pixels may change, and the universal id that they get."""


@dataclass
class Relabelling:
    """All decisions over one dataset's images."""

    dataset: str
    decisions: dict[_Key, list[Decision]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all decisions."""
        digest = hashlib.sha256()
        for key in sorted(self.decisions):
            digest.update(repr((key, self.decisions[key])).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return sum(map(len, self.decisions.values()))

    def of(self, source: Source, split: str) -> list[Decision]:
        """The decisions over one image."""
        *_, parent, name = ("", *source.image.split("/"))
        stem: str | None = name.rpartition(".")[0]
        if self.dataset == "sunrgbd":
            stem = _sunrgbd_stem(source, split)
        return [] if stem is None else self.decisions.get(self._key(split, parent, stem), [])

    def add(
        self, split: str, parent: str, stem: str, segment: int, natives: tuple[int, ...], new: int
    ) -> None:
        """Adds a decision; a later one over the same segment comes after, and so prevails."""
        key = self._key(split, parent, stem)
        self.decisions.setdefault(key, []).append((segment, natives, new))

    def _key(self, split: str, parent: str, stem: str) -> _Key:
        return split, parent if self.dataset in _NEEDS_PARENT else "", stem


def _sunrgbd_stem(source: Source, split: str) -> str | None:
    """What chrischoy's form, which the decisions name, calls an image of any form.

    There both splits count from 1. The other forms' numbers are positions in the official list,
    which has the test images first.
    """
    stem = source.image.rpartition("/")[2].rpartition(".")[0]
    if "index" in source.extra:
        number = int(source.extra["index"]) + 1
        if (number <= NUM_TEST) != (split == "val"):
            return None
    elif match := re.fullmatch(r"img\w*-0*(\d+)", stem):
        number = int(match[1])
    else:
        return stem
    return f"img-{number - NUM_TEST if number > NUM_TEST else number:06d}"


def load_relabelling(uri: str, datasets: Iterable[str]) -> dict[str, Relabelling]:
    """Reads the decisions over some datasets.

    Args:
        uri: A folder of flat tables, one such table, or a checkout of mseg-api; local or s3://.
        datasets: The datasets that are converted.

    Returns:
        By dataset; only datasets with decisions.

    Raises:
        UserError: There is neither form, or a table is damaged.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    if name.endswith((".tsv", ".tsv.gz")):
        tables, root = [name], open_storage(folder or ".")
    else:
        root = open_storage(uri)
        tables = [f"{d}{end}" for d in datasets for end in (".tsv.gz", ".tsv")]
    found = {}
    for dataset in datasets:
        present = [t for t in tables if t.partition(".")[0] == dataset and root.exists(t)]
        if present:
            found[dataset] = _flat(root, present[0], dataset)
    if not found:
        found = _checkout(root, set(datasets))
    if not found:
        raise UserError(
            f"relabel={uri}: has no decisions over {', '.join(datasets)}: give a folder with "
            f"<dataset>.tsv.gz, or a checkout of mseg-api with {_FILES}"
        )
    return {dataset: table for dataset, table in found.items() if len(table)}


def relabel(
    label: np.ndarray, native: np.ndarray, reader: Reader, source: Source
) -> tuple[int, int]:
    """Applies the decisions over an image, if there are any, to its label in place.

    The label is (H, W) uint8 universal ids, `native` the native ones as they were read.

    Returns:
        How many decisions changed pixels, and how many found none.

    Raises:
        BadSample: The file that holds the segments is missing or damaged.
    """
    if not (decisions := source.extra.get(DECISIONS)):
        return 0, 0
    masks = reader.segment_masks(source, {segment for segment, _, _ in decisions})
    changed = 0
    for segment, natives, new in decisions:
        if masks is not None and segment not in masks:
            continue
        still = np.isin(native, natives)
        if masks is not None:
            still &= masks[segment]
        if still.any():
            label[still] = new
            changed += 1
    return changed, len(decisions) - changed


def _flat(root: Storage, name: str, dataset: str) -> Relabelling:
    where = f"{root.uri}/{name}"
    data = root.read(name)
    table = Relabelling(dataset)
    try:
        if name.endswith(".gz"):
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MAX_TABLE_BYTES + 1)
        if len(data) > _MAX_TABLE_BYTES:
            raise UserError(f"{where}: is larger than {_MAX_TABLE_BYTES >> 20} MiB unpacked")
        rows = csv.DictReader(io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise UserError(f"{where}: lacks the column {missing[0]}: must have {_COLUMNS}")
        for row in rows:
            if not (natives := _native_ids(dataset, row["native_class"])):
                raise UserError(
                    f"{where}: native_class={row['native_class']!r}: not a class of {dataset}"
                )
            place = row["split"], row.get("parent") or "", row["image_stem"]
            segment, new = int(row["segment_id"]), _universal_id(row["new_universal_name"])
            table.add(*place, segment, natives, new)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, TypeError, csv.Error, zlib.error) as error:
        raise UserError(
            f"{where}: is no table of relabelled segments ({type(error).__name__}: {error})"
        ) from error
    return table


def _checkout(root: Storage, datasets: set[str]) -> dict[str, Relabelling]:
    base = next((b for b in (_FILES, "relabeled_data") if has_folders(root, "", b)), "")
    found: dict[str, Relabelling] = {}
    for row in _index():
        dataset = _MSEG_KEYS[row["mseg_key"]]
        path = f"{base}/{row['file']}".strip("/")
        if dataset not in datasets or not root.exists(path):
            continue
        table = found.setdefault(dataset, Relabelling(dataset))
        natives = _natives_of(dataset, row["original_name"], row["file"])
        new = _universal_id(row["new_name"])
        lines = root.read(path).decode(errors="backslashreplace").split()
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise UserError(f"{root.uri}/{path}: line {number}: {line[:80]!r} names no segment")
            segment = int(match["segment"])
            table.add(row["split"], match["parent"] or "", match["stem"], segment, natives, new)
    return found


@cache
def split_classes(dataset: str) -> Mapping[str, tuple[int, ...]]:
    """Universal classes that MSeg's decisions cut out of a dataset's, by name.

    Returns:
        For each, the native ids of the classes that some of its segments were labelled as; first
        the one that most lists of decisions are about.
    """
    found: dict[str, Counter[int]] = {}
    for row in _index():
        if _MSEG_KEYS[row["mseg_key"]] == dataset and row["new_name"] not in _NOTHING:
            natives = _natives_of(dataset, row["original_name"], row["file"])
            found.setdefault(row["new_name"], Counter()).update(natives)
    return {
        name: tuple(sorted(counts, key=lambda native_id: (-counts[native_id], native_id)))
        for name, counts in found.items()
    }


@cache
def _index() -> list[dict[str, str]]:
    """What each list of a checkout decides: key, split, original and new class, file."""
    return read_tsv(Path(__file__).parents[1] / "taxonomy" / "relabel_files.tsv")


@cache
def _native_ids(dataset: str, names: str) -> tuple[int, ...]:
    """The ids of a native class, or of several that the tables join by `|`."""
    ids = {native.native_name: native.native_id for native in native_table(dataset)}
    if names in ids:
        return (ids[names],)
    return tuple(ids[name] for name in names.split("|") if name in ids)


@cache
def _natives_of(dataset: str, original: str, file: str) -> tuple[int, ...]:
    """The native classes that a list is about: those its folder names, or of the same target."""
    folder = _letters(file.partition("/")[0])
    table = native_table(dataset)
    named = [n for n in table if _letters(n.native_name) in folder and n.universal_name == original]
    named = named or [n for n in table if n.universal_name == original]
    named = named or [n for n in table if folder.endswith(_letters(n.native_name))]
    assert named, file
    return tuple(native.native_id for native in named)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _universal_id(name: str) -> int:
    return IGNORE if name in _NOTHING else universal().id_of(name)


def with_decisions(listing: Listing, split: str, table: Relabelling) -> Listing:
    """Gives every source of a listing the decisions over it, and notes how many there are."""
    sources, matched = [], 0
    for source in listing.sources:
        if found := table.of(source, split):
            matched += len(found)
            source = replace(source, extra={**source.extra, DECISIONS: found})
        sources.append(source)
    known = sum(len(found) for key, found in table.decisions.items() if key[0] == split)
    note = f"{split}: {matched} of MSeg's decisions are over images that are here"
    if known > matched:
        note += f", {known - matched} over others"
    return replace(listing, sources=tuple(sources), notes=(*listing.notes, note))


def with_full_ade20k(listing: Listing, uri: str) -> Listing:
    """Adds to ADE20K's sources with decisions where the full release has their segments.

    There the images lie by scene, with `*_seg.png` beside them.

    Raises:
        UserError: It holds no segments.
    """
    root = open_storage(uri)
    places = {
        entry.path.rpartition("/")[2].removesuffix("_seg.png"): entry.path
        for entry in root.list()
        if entry.path.endswith("_seg.png")
    }
    if not places:
        raise UserError(
            f"ade20k_full={uri}: holds no *_seg.png: give the folder of the full release "
            "(ADE20K_2016_07_26), or none"
        )
    sources, missing = [], 0
    for source in listing.sources:
        if decisions := source.extra.get(DECISIONS):
            place = places.get(source.image.rpartition("/")[2].rpartition(".")[0])
            found = {DECISIONS: decisions, "full_release": f"{root.uri}/{place}"}
            missing += place is None
            source = replace(source, extra={} if place is None else found)
        sources.append(source)
    notes = listing.notes
    if missing:
        notes = (*notes, f"{missing} images with decisions are not in the full release: unchanged")
    return replace(listing, sources=tuple(sources), notes=notes)
