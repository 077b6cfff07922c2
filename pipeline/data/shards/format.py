"""Shards: plain WebDataset tars with a manifest that knows every sample's place and checksum.

    <out>/<dataset>/<split>/<dataset>-<split>-%06d.tar    <key>.jpg, <key>.json, <key>.png a sample,
                                                          and <key>.native.png where wanted
    <out>/<dataset>/<split>/manifest.json                 written last: without it, unfinished

The tars are written by webdataset's own TarWriter with fixed time and owner, so equal samples give
equal bytes. The manifest holds, for each sample, the byte range of its members, so that one range
request reads it without the rest of the shard. Images are RGB JPEGs in the orientation of their
labels; labels are 8-bit PNGs of positions in `Manifest.class_names`, 255 where nothing is to be
learnt.
"""

import hashlib
import json
import posixpath
import re
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, BinaryIO

from isal.isal_zlib import crc32

from pipeline.data.taxonomy import universal
from pipeline.errors import UserError, did_you_mean, printable
from pipeline.storage.base import Storage

FORMAT_VERSION = 2
"""Changes when older code cannot read a manifest, or when the same input gives other bytes."""
_READABLE_VERSIONS = (1, 2)
"""Version 1 has no checksums of single samples."""
MANIFEST_NAME = "manifest.json"
MAX_SHARD_BYTES = 1 << 40
"""No shard is larger; a byte range beyond it is a damaged manifest."""
MAX_SAMPLE_BYTES = 1 << 30
"""No sample is larger; a length beyond it is a damaged manifest."""

_OWNER = "lseg"
_MAX_KEY_BYTES = 90
"""A ustar name holds 100 bytes: the key, a dot and the extension."""


class ShardError(ValueError):
    """A stored sample or shard is not what its manifest says; names the shard and the key."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """Where one sample lies in its shard, and how large its image is."""

    key: str
    offset: int
    """Bytes from the start of the tar to the header of the sample's first member."""
    length: int
    """Bytes up to the end of the last member's padding."""
    height: int
    """Pixels of the stored image and label."""
    width: int
    crc32: int | None = None
    """Checksum of these bytes of the tar; None in manifests of format version 1."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One tar: its name within the folder, size in bytes, SHA-256 in hex, and its samples."""

    name: str
    size: int
    sha256: str
    samples: tuple[SampleRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a sample is a row in the order of SampleRecord's fields."""
        rows = [
            [s.key, s.offset, s.length, s.height, s.width, *([] if s.crc32 is None else [s.crc32])]
            for s in self.samples
        ]
        return {"name": self.name, "size": self.size, "sha256": self.sha256, "samples": rows}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardRecord":
        """The inverse of `to_dict`; KeyError, TypeError or ValueError when it is not one."""
        samples = []
        for key, *numbers in values["samples"]:
            offset, length, height, width, *crc32 = map(int, numbers)
            samples.append(SampleRecord(str(key), offset, length, height, width, *crc32))
        name, sha256 = values["name"], values["sha256"]
        if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*", name):  # It names a file.
            raise ValueError(f"shard {name!r} is no plain file name")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # It names a file of the cache.
            raise ValueError(f"sha256 {sha256!r} is not 64 hex digits")
        return cls(name, int(values["size"]), sha256, tuple(samples))


@dataclass(frozen=True)
class Manifest:
    """What one finished folder of shards holds, and what it was made from."""

    format_version: int
    dataset: str
    split: str
    taxonomy: str
    taxonomy_fingerprint: str
    source_fingerprint: str
    """Identifies the listed source files: names, sizes and labels' descriptions."""
    settings: dict[str, Any]
    """Everything else that the bytes depend on, such as `short_side_px`."""
    shards: tuple[ShardRecord, ...]
    class_pixels: tuple[int, ...]
    """Labelled pixels of each class over all stored labels."""
    left_out: tuple[tuple[str, str], ...]
    """Name and reason of every source sample that is in no shard."""
    notes: tuple[str, ...] = ()
    """How the download differs from the published one."""
    classes: tuple[str, ...] = ()
    """The taxonomy's classes where it is not the universal one; see `class_names`."""
    own_words: tuple[tuple[str, str], ...] = ()
    """Classes of a dataset of the user's own, each with what the dataset's table calls it: a pair
    for every line of the table that is not ignored."""

    def _check(self) -> None:
        """Raises ValueError where a value is of a kind that no program can work with."""
        texts = ("dataset", "split", "taxonomy", "taxonomy_fingerprint", "source_fingerprint")
        for name in texts:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is no text")
        if not isinstance(self.settings, dict):
            raise ValueError("settings are no object")
        # JSON may hold half of a pair of surrogates, which is no text that can be written.
        others = {name: value for name, value in vars(self).items() if name != "shards"}
        keys = (sample.key for shard in self.shards for sample in shard.samples)
        "\n".join((json.dumps(others, ensure_ascii=False), *keys)).encode()
        if not all(0 <= count < 1 << 62 for count in self.class_pixels):
            raise ValueError("class_pixels holds what is no number of pixels")
        if len(self.class_names) != len(self.class_pixels):
            raise ValueError(
                f"class_pixels has {len(self.class_pixels)} entries for {len(self.class_names)} "
                "classes"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the stored ids are positions in; numbers for an unknown taxonomy."""
        known = universal()
        if self.classes or self.taxonomy_fingerprint == known.fingerprint:
            return self.classes or known.classes
        return tuple(f"class {number}" for number in range(len(self.class_pixels)))

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def classes_seen(self) -> set[str]:
        """Names of the classes with a pixel in any label."""
        pairs = zip(self.class_names, self.class_pixels, strict=True)
        return {name for name, count in pairs if count}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything stored, down to single bytes of a shard."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """One line of JSON; equal manifests give equal text."""
        values = dict(vars(self))
        values["shards"] = [shard.to_dict() for shard in self.shards]
        for name in ("notes", "classes", "own_words"):
            if not values[name]:  # As in manifests from before there were any: equal fingerprints.
                del values[name]
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST_NAME) -> "Manifest":
        """Reads what `to_json` wrote; `where` names the file in messages.

        Raises:
            UserError: It is damaged, or of another format version.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f"{where}: not a manifest of shards: convert the dataset again"
            ) from None
        if version not in _READABLE_VERSIONS:
            raise UserError(
                f"{where}: format version {version!r}, this program reads "
                f"{' and '.join(map(str, _READABLE_VERSIONS))}: convert the dataset again into "
                "another folder"
            )
        try:
            values["shards"] = tuple(ShardRecord.from_dict(shard) for shard in values["shards"])
            values["class_pixels"] = tuple(map(int, values["class_pixels"]))
            values["left_out"] = tuple((str(n), str(r)) for n, r in values["left_out"])
            values["notes"] = tuple(map(str, values.get("notes", ())))
            values["classes"] = tuple(map(str, values.get("classes", ())))
            pairs = values.get("own_words", ())
            values["own_words"] = tuple((str(name), str(word)) for name, word in pairs)
            manifest = cls(**values)
            manifest._check()
            return manifest
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            what = printable(str(error))[:200]
            raise UserError(
                f"{where}: damaged ({type(error).__name__}: {what}): delete it and convert the "
                "dataset again"
            ) from None


@dataclass(frozen=True)
class StoredSample:
    """The stored members of one sample."""

    key: str
    jpeg: bytes
    png: bytes
    meta: dict[str, Any]
    native_png: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedSample(StoredSample):
    """One sample before it is written, with the size of its image and label in pixels."""

    height: int
    width: int


def folder(dataset: str, split: str) -> str:
    """The folder of one dataset's split, relative to the root of the shards."""
    return f"{dataset}/{split}"


def shard_name(dataset: str, split: str, index: int) -> str:
    """The file name of one shard within its folder."""
    return f"{dataset}-{split}-{index:06d}.tar"


@cache
def _tar_writer() -> Any:
    """Returns webdataset's TarWriter, imported as where there is no torch.

    webdataset imports torch if it can, for loaders that a writer does without: two seconds and 450
    MB for each process of a conversion. A later import of webdataset gives one with loaders.
    """
    if "torch" in sys.modules or "webdataset" in sys.modules:
        from webdataset.writer import TarWriter

        return TarWriter
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from webdataset.writer import TarWriter
    finally:
        for name in [n for n in sys.modules if n == "torch" or n.split(".")[0] == "webdataset"]:
            del sys.modules[name]
    return TarWriter


class ShardWriter:
    """Writes one shard into a temporary file, then uploads it as a whole.

    A context manager; the temporary file is gone afterwards, and the storage holds either the
    complete shard or nothing of it.
    """

    def __init__(self, storage: Storage, dataset: str, split: str, index: int) -> None:
        self._storage = storage
        self._path = posixpath.join(folder(dataset, split), shard_name(dataset, split, index))
        self._records: list[SampleRecord] = []
        self._keys: set[str] = set()

    def __enter__(self) -> "ShardWriter":
        self._file = tempfile.TemporaryFile()  # Without a name: gone however the process ends.
        self._tar = _tar_writer()(
            self._file, encoder=False, mtime=0, user=_OWNER, group=_OWNER, mode=0o444
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()  # Closed already after `finish`; its buffer must not outlive the file.
        self._file.close()

    def write(self, sample: EncodedSample) -> None:
        """Appends a sample.

        Raises:
            ValueError: The key is not one that every WebDataset reader takes, or comes twice.
        """
        _check_key(sample.key)
        # Case-insensitive file systems would extract the second one over the first.
        if sample.key.casefold() in self._keys:
            raise ValueError(f"key {sample.key!r} comes twice in one shard")
        self._keys.add(sample.key.casefold())
        meta = json.dumps(sample.meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        offset = self._tar.tarstream.offset
        members = {"__key__": sample.key, "jpg": sample.jpeg, "json": meta.encode()}
        members |= {"png": sample.png}
        if sample.native_png is not None:
            members["native.png"] = sample.native_png
        self._tar.write(members)
        length = self._tar.tarstream.offset - offset
        self._records.append(SampleRecord(sample.key, offset, length, sample.height, sample.width))

    def finish(self) -> ShardRecord:
        """Closes the tar, checks every recorded place, and uploads it."""
        self._tar.close()
        self._file.flush()
        self._file.seek(0)
        assert _sample_starts(self._file) == [(r.key, r.offset) for r in self._records]
        records = []
        for record in self._records:
            self._file.seek(record.offset)
            records.append(replace(record, crc32=crc32(self._file.read(record.length))))
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
        size = self._file.tell()
        self._storage.upload(self._path, self._file)
        return ShardRecord(posixpath.basename(self._path), size, sha256, tuple(records))


def load_manifest(storage: Storage, dataset: str, split: str) -> Manifest:
    """Reads the manifest of one dataset's split.

    Raises:
        UserError: There is none, which means that its conversion never finished, or is damaged.
    """
    path = f"{folder(dataset, split)}/{MANIFEST_NAME}"
    try:
        text = storage.read(path)
    except FileNotFoundError:
        finished = [f"{d}/{s}" for d, s in finished_splits(storage)]
        raise UserError(
            f"{storage.uri}/{path}: no such manifest; finished there: "
            f"{', '.join(finished) or 'nothing'}: run jobs/prepare_shards.py to the end"
            + did_you_mean(folder(dataset, split), finished)
        ) from None
    return Manifest.from_json(text, f"{storage.uri}/{path}")


def find_manifests(storage: Storage, split: str) -> dict[str, Manifest]:
    """The manifests of all datasets that have this split, by dataset in alphabetical order."""
    return {d: load_manifest(storage, d, s) for d, s in finished_splits(storage) if s == split}


def read_sample(
    storage: Storage, dataset: str, split: str, shard: ShardRecord | str, record: SampleRecord
) -> StoredSample:
    """Reads one sample of a shard, or of one given by its name, by one range request.

    Raises:
        ShardError: The bytes there are not this sample's members.
        FileNotFoundError: The shard does not exist.
        UserError: The shard is cut short, or its storage fails.
    """
    name = shard if isinstance(shard, str) else shard.name
    path = f"{folder(dataset, split)}/{name}"
    where = f"{storage.uri}/{path}, key {record.key}"
    if reason := misplaced(None if isinstance(shard, str) else shard, record):
        raise ShardError(f"{where}: {reason}")
    return parse_sample(storage.read_range(path, record.offset, record.length), where, record)


def misplaced(shard: ShardRecord | None, record: SampleRecord) -> str:
    """Why a sample cannot lie where a manifest says; an empty text if it can.

    Checked before any byte is read: offsets and lengths of a damaged manifest may be anything.
    """
    size = MAX_SHARD_BYTES if shard is None else min(shard.size, MAX_SHARD_BYTES)
    if not 0 <= record.offset < record.offset + record.length <= size:
        return f"bytes {record.offset}+{record.length} cannot be a sample"
    if record.length > MAX_SAMPLE_BYTES:
        return f"{record.length} bytes are more than a sample can have ({MAX_SAMPLE_BYTES})"
    return ""


def parse_sample(data: bytes, where: str, record: SampleRecord) -> StoredSample:
    """The members of one sample from its bytes of the shard; `where` names it in messages.

    Raises:
        ShardError: They are not this sample's members, or not as they were written.
    """
    if record.crc32 is not None and crc32(data) != record.crc32:
        raise ShardError(f"{where}: its bytes are not those that were written (checksum)")
    try:
        members = _members(data)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ShardError(f"{where}: no tar members at offset {record.offset} ({error})") from None
    wanted = {f"{record.key}.{extension}" for extension in ("jpg", "json", "png")}
    if not wanted <= members.keys() or any(
        not name.startswith(f"{record.key}.") for name in members
    ):
        raise ShardError(f"{where}: the bytes there are those of {', '.join(sorted(members))}")
    try:
        meta = json.loads(members[f"{record.key}.json"])
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: its .json does not parse ({error})") from None
    if not isinstance(meta, dict):
        raise ShardError(f"{where}: its .json holds no object")
    return StoredSample(
        record.key,
        members[f"{record.key}.jpg"],
        members[f"{record.key}.png"],
        meta,
        members.get(f"{record.key}.native.png"),
    )


def finished_splits(storage: Storage) -> list[tuple[str, str]]:
    """Dataset and split of every manifest below the root of the shards, sorted."""
    parts = (entry.path.split("/") for entry in storage.list())
    return sorted((p[0], p[1]) for p in parts if len(p) == 3 and p[2] == MANIFEST_NAME)


def _check_key(key: str) -> None:
    # A dot would end the key early; the rest would confuse shells, globs or tar itself.
    if not re.fullmatch(r"[^\s./\\\x00-\x1f][^\s.\\\x00-\x1f]*", key):
        raise ValueError(f"key {key!r}: must be without dots, spaces, backslashes, leading slash")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise ValueError(f"key {key!r}: must be at most {_MAX_KEY_BYTES} bytes long")


def _sample_starts(file: BinaryIO) -> list[tuple[str, int]]:
    """Key and first header's offset of each sample, as an independent reader of tars sees them."""
    starts: list[tuple[str, int]] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key = member.name.partition(".")[0]
            if not starts or starts[-1][0] != key:
                starts.append((key, member.offset))
    return starts


def _members(data: bytes) -> dict[str, bytes]:
    """The members of a run of whole tar members, by name; headers and data fill whole blocks."""
    members = {}
    position = 0
    while position < len(data):
        start = position + tarfile.BLOCKSIZE
        header = tarfile.TarInfo.frombuf(data[position:start], "utf-8", "strict")
        if header.size < 0 or start + header.size > len(data):
            raise ValueError(f"{header.name} claims {header.size} bytes")
        members[header.name] = data[start : start + header.size]
        position = start + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members
