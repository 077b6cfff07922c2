"""A folder whose official archives count as unpacked where they lie.

    cityscapes/leftImg8bit_trainvaltest.zip    is read as  cityscapes/leftImg8bit/train/...
    cityscapes/gtFine_trainvaltest.zip                     cityscapes/gtFine/train/...

An archive of bare images, without a folder of its own, counts as unpacked into a folder of its own
name: two such archives may hold equal names.
"""

import heapq
import logging
import posixpath
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.archives.archive import SUFFIXES, Archive
from pipeline.storage.archives.blob import Blob
from pipeline.storage.base import DamagedFile, Entry, Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.node_copies import spooled
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

_MAX_LOOSE_FILES = 1000
"""No folder with more files than this beside its archives is searched to the end."""
_MAX_NESTING = 3
_IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Packing:
    """One of a dataset's official archives."""

    pattern: str
    """Its name, as a shell pattern; with the folder in which it lies, if that is not the root."""
    unpacks_to: str
    """A file or folder that is there once it is unpacked, relative to the root."""
    whole: bool = False
    """Whether it holds a dataset by itself, and not images or labels alone."""


class PackedStorage(Storage):
    """Archives over a folder, or alone. For reading only.

    A path that is both in an archive and beside it is read from the archive.

    Args:
        uri: The folder, or the one archive.
        beside: The folder's files, or None for an archive alone.
        opened_with: The arguments of `open_packed` that open the same anew.
    """

    def __init__(self, uri: str, beside: Storage | None, opened_with: tuple[Any, ...]) -> None:
        self.uri = uri
        self._opened_with = opened_with
        self._plain = beside
        self._mounts: list[tuple[str, Archive]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return open_packed, self._opened_with

    def mount(self, folder: str, archive: Archive) -> None:
        """Makes an archive's members appear in a folder."""
        tops = {name.partition("/")[0] for name in archive.names}
        if any(top.lower().endswith(_IMAGES) for top in tops):
            stem = posixpath.basename(archive.name)
            for suffix in SUFFIXES:
                stem = stem.removesuffix(suffix)
            folder = posixpath.join(folder, stem)
        self._mounts.append((f"{folder}/" if folder else "", archive))
        if archive.refused:
            count, first = len(archive.refused), " ".join(archive.refused[0])
            logger.warning(f"{archive.name}: {count} members are not read, the first: {first}")

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each member, over all archives, that is not read."""
        return tuple(
            (f"{posixpath.basename(archive.name)}: {name}", reason)
            for _, archive in self._mounts
            for name, reason in archive.refused
        )

    def blob(self, path: str) -> Blob:
        """A file as a byte range of something stored; a compressed one is copied to this node."""
        holder, name = self._holder(path)
        return holder.spooled_part(name) if isinstance(holder, Archive) else Blob.of(holder, name)

    def _holder(self, path: str) -> tuple[Archive | Storage, str]:
        """What holds a file, an archive before the folder beside it, and the file's path there."""
        for folder, archive in self._mounts:
            if path.startswith(folder) and path.removeprefix(folder) in archive:
                return archive, path.removeprefix(folder)
        if self._plain is None:
            raise self._missing(path)
        return self._plain, path

    def _read(self, path: str) -> bytes:
        holder, name = self._holder(path)
        return holder.read(name)

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        holder, name = self._holder(path)
        return holder.read_range(name, offset, length)

    def _size(self, path: str) -> int:
        holder, name = self._holder(path)
        return holder.size(name)

    def _version(self, path: str) -> str:
        holder, name = self._holder(path)
        return holder.version(name)

    def _list(self, prefix: str) -> Iterator[Entry]:
        return self._merged(prefix, None if self._plain is None else self._plain.list(prefix))

    def _files(self, prefix: str) -> Iterator[Entry]:
        beside = None if self._plain is None else self._plain.files(prefix)
        depth = prefix.count("/") + bool(prefix)
        return (e for e in self._merged(prefix, beside) if e.path.count("/") == depth)

    def _merged(self, prefix: str, beside: Iterator[Entry] | None) -> Iterator[Entry]:
        """What the archives, and then the folder beside them, have below a folder, in order."""
        start = f"{prefix}/" if prefix else ""
        parts = [_members(folder, archive, start) for folder, archive in self._mounts]
        last = None
        for entry in heapq.merge(*parts, beside or (), key=lambda entry: entry.path):
            if entry.path != last:
                yield entry
            last = entry.path

    def _folders(self, prefix: str) -> Iterator[str]:
        start = f"{prefix}/" if prefix else ""
        found = set(self._plain.folders(prefix)) if self._plain is not None else set()
        for folder, archive in self._mounts:
            found |= _subfolders(folder, archive, start)
        return iter(found)


def _members(folder: str, archive: Archive, start: str) -> Iterator[Entry]:
    """The members of a mounted archive whose paths begin with `start`, in order."""
    if folder.startswith(start):
        inner = ""
    elif start.startswith(folder):
        inner = start.removeprefix(folder)
    else:
        return
    for place in range(bisect_left(archive.names, inner), len(archive.names)):
        name = archive.names[place]
        if not name.startswith(inner):
            return
        yield Entry(folder + name, archive.size_at(place))


def _subfolders(folder: str, archive: Archive, start: str) -> set[str]:
    """The folders directly below `start` that a mounted archive has."""
    if folder.startswith(start) and folder != start:
        return {folder.removeprefix(start).partition("/")[0]} if archive.names else set()
    if not start.startswith(folder):
        return set()
    inner = start.removeprefix(folder)
    found = set()
    place = bisect_left(archive.names, inner)
    while place < len(archive.names) and archive.names[place].startswith(inner):
        top, slash, _ = archive.names[place].removeprefix(inner).partition("/")
        if slash:
            found.add(top)
            # To the first name behind all that lie in this folder: "0" follows "/".
            place = bisect_left(archive.names, f"{inner}{top}0", place)
        else:
            place += 1
    return found


def open_packed(
    uri: str, packings: tuple[Packing, ...], base: str = "", any_archive: bool = False
) -> Storage:
    """Opens a folder with the archives that lie packed in it, or one archive.

    Args:
        uri: A folder, or an archive.
        packings: The archives to look for.
        base: The folder within `uri` in which they lie.
        any_archive: Whether to take whatever archives lie there instead.

    Returns:
        A `PackedStorage`, or the plain storage where there is no archive to open.

    Raises:
        UserError: An archive is damaged, or a storage fails.
    """
    opened_with = (uri, packings, base, any_archive)
    if uri.lower().endswith(SUFFIXES) and (blob := _archive_at(uri)) is not None:
        packed = PackedStorage(blob.name, None, opened_with)
        packed.mount("", _archive(blob))
        return packed
    plain = open_storage(uri)
    packed = PackedStorage(plain.uri, plain, opened_with)
    if any_archive:
        packings = (Packing("*", ""),)
    found: set[str] = set()
    for _ in range(_MAX_NESTING):
        new = _packed_in(packed, packings, base, found)
        for path in new:
            packed.mount(posixpath.dirname(path), _archive(packed.blob(path)))
        found.update(new)
        if not new or any_archive:
            break
    return packed if found else plain


def local_copy(storage: Storage, path: str) -> Path:
    """The file itself where it is local, or a node-local copy, for libraries that need a file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The disk is too small for a copy, or a storage fails.
    """
    blob = storage.blob(path) if isinstance(storage, PackedStorage) else Blob.of(storage, path)
    whole = blob.offset == 0 and blob.size == blob.storage.size(blob.path)
    if whole and isinstance(blob.storage, LocalStorage):
        return Path(blob.storage.uri, blob.path)
    return spooled(f"copy 1|{blob.version}", blob.name, blob.chunks(), blob.size)


def _archive_at(uri: str) -> Blob | None:
    parent, _, name = uri.rstrip("/").rpartition("/")
    storage = open_storage(parent or ("/" if uri.startswith("/") else "."))
    try:
        return Blob.of(storage, name)
    except FileNotFoundError:
        return None


def _packed_in(
    storage: Storage, packings: tuple[Packing, ...], base: str, known: set[str]
) -> list[str]:
    """Paths of further archives in a folder whose content does not lie there unpacked."""
    found = []
    for folder in sorted({posixpath.dirname(packing.pattern) for packing in packings}):
        where = "/".join(part for part in (base, folder) if part)
        for entry in islice(storage.files(where), _MAX_LOOSE_FILES):
            name = posixpath.basename(entry.path)
            is_archive = name.lower().endswith(SUFFIXES) and not name.startswith(".")
            if not is_archive or entry.path in known:
                continue
            for packing in packings:
                if not fnmatchcase(posixpath.join(folder, name), packing.pattern):
                    continue
                there = "/".join(part for part in (base, packing.unpacks_to) if part)
                if packing.unpacks_to and (storage.exists(there) or not storage.is_empty(there)):
                    logger.info("%s/%s: is unpacked already", storage.uri, entry.path)
                else:
                    found.append(entry.path)
                break
    return found


def _archive(blob: Blob) -> Archive:
    """An archive's table; read once in each process."""
    version = blob.version
    if version not in _ARCHIVES:
        logger.info("reading the table of %s", blob.name)
        try:
            _ARCHIVES[version] = Archive(blob)
        except DamagedFile as error:
            raise UserError(str(error)) from error
    return _ARCHIVES[version]


_ARCHIVES: dict[str, Archive] = {}
