"""Zip and tar archives, read in place: a table of their members, and any member's bytes.

A zip is read by its central directory, so one range request fetches a member. A plain tar has no
directory: its headers are walked once on each node, and the table is kept there (`spool`). A
.tar.gz can only be read in order: it is decompressed once into a copy on each node.

`archive_table` decides which members may be read.
"""

import gzip
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from pipeline.errors import UserError
from pipeline.storage.archives.blob import Blob
from pipeline.storage.archives.table import (
    DEFLATED,
    STORED,
    TAR_MEMBER,
    Member,
    bomb,
    damaged,
    tar_table,
    zip_table,
)
from pipeline.storage.base import DamagedFile
from pipeline.storage.local import LocalStorage
from pipeline.storage.node_copies import spooled

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""The archives that are read, by the ends of their names."""

_MAX_READ_BYTES = 4 << 30
_CHUNK_BYTES = 8 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Archive:
    """The members of one archive.

    Raises:
        UserError: It is damaged, cut short, or not of the kind that its name says.
    """

    def __init__(self, blob: Blob) -> None:
        self.name = blob.name
        is_zip = blob.name.lower().endswith(".zip")
        if blob.name.lower().endswith((".tar.gz", ".tgz")):
            version = f"gunzip 1|{blob.version}"
            blob = _spooled_blob(version, blob.name, _gunzipped(blob), blob.size)
        self._blob = blob
        # `refused`: name and reason of each member that is not read.
        rows, self.refused = zip_table(blob) if is_zip else tar_table(blob)
        self.names: list[str] = sorted(rows)
        """Safe paths of the members that can be read, sorted."""
        table = [rows[name] for name in self.names]
        self._table = np.array(table, np.int64).reshape(-1, 5)  # 40 bytes a member, not 400

    def __contains__(self, name: str) -> bool:
        place = bisect_left(self.names, name)
        return place < len(self.names) and self.names[place] == name

    def version(self, name: str) -> str:
        """A text that changes when the archive does, and so the member."""
        return self._blob.version

    def size(self, name: str) -> int:
        """Bytes of a member, as it unpacks."""
        return self._row(name).size

    def size_at(self, place: int) -> int:
        """Bytes of the member `names[place]`."""
        return int(self._table[place, 1])

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            DamagedFile: They are not those that the archive's directory promises.
        """
        row = self._row(name)
        if row.size > _MAX_READ_BYTES:
            raise DamagedFile(
                f"{self.name}: {name} has {row.size} bytes, more than can be read at once"
            )
        return b"".join(self._chunks(name, row.packed + 1))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Bytes of a member from `start` on, fewer at its end; cheap where it is not compressed."""
        if (part := self.plain_part(name)) is not None:
            return part.read(start, length)
        return self.read(name)[start : start + length]

    def plain_part(self, name: str) -> Blob | None:
        """The part of the archive that is a member as it is, or None if that is compressed."""
        row = self._row(name)
        if row.method == DEFLATED:
            return None
        offset = self._data(name, row.offset, 0)[0] if row.method == STORED else row.offset
        blob, where = self._blob, f"{self.name}/{name}"
        version = f"{blob.version}|{name}"
        return Blob(blob.storage, blob.path, blob.offset + offset, row.size, where, version)

    def spooled_part(self, name: str) -> Blob:
        """A member as a file of its own: where it lies, or decompressed into a node-local copy."""
        if (part := self.plain_part(name)) is not None:
            return part
        version, chunks = f"{self._blob.version}|{name}", self._chunks(name, _CHUNK_BYTES)
        return _spooled_blob(version, f"{self.name}/{name}", chunks, self.size(name))

    def _row(self, name: str) -> Member:
        if name not in self:
            raise FileNotFoundError(f"{self.name}/{name}: there is no such file")
        return Member(*self._table[bisect_left(self.names, name)].tolist())

    def _data(self, name: str, offset: int, wanted: int) -> tuple[int, bytes]:
        """Where a zip member's data begins, and its first bytes, mostly by one request."""
        # The central directory does not say how long the local header's own fields are.
        head = self._blob.read(offset, _LOCAL_HEADER.size + len(name.encode()) + 128 + wanted)
        if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\3\4"):
            raise DamagedFile(f"{self.name}: {name}: no member begins where the directory says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(head)
        skip = _LOCAL_HEADER.size + name_bytes + extra_bytes
        return offset + skip, head[skip : skip + wanted]

    def _chunks(self, name: str, chunk_bytes: int) -> Iterator[bytes]:
        """Yields a member's unpacked bytes, and checks their number and checksum at the end."""
        offset, size, packed, method, crc = self._row(name)
        first = b""
        if method != TAR_MEMBER:
            offset, first = self._data(name, offset, min(packed, chunk_bytes))
        inflate = zlib.decompressobj(-15) if method == DEFLATED else None
        position, total, checksum = 0, 0, 0
        while position < packed:
            data = first or self._blob.read(offset + position, min(chunk_bytes, packed - position))
            first = b""
            if not data:
                break
            position += len(data)
            for out in _inflated(inflate, data, size - total, f"{self.name}: {name}"):
                total += len(out)
                checksum = zlib.crc32(out, checksum)
                yield out
            if total > size:
                break
        if total != size or (method != TAR_MEMBER and checksum != crc):
            raise DamagedFile(
                f"{self.name}: {name}: its bytes are not those that the archive's directory "
                "promises: download the archive again"
            )


def _inflated(
    inflate: "zlib._Decompress | None", data: bytes, room: int, where: str
) -> Iterator[bytes]:
    """Yields at most one byte more than `room`: enough to see that a member is too long."""
    if inflate is None:
        yield data
        return
    full = True
    # A full answer may have left more inside, though all of the input is taken.
    while room >= 0 and (data or full) and not inflate.eof:
        limit = min(room, _CHUNK_BYTES) + 1
        try:
            out = inflate.decompress(data, limit)
        except zlib.error as error:
            raise DamagedFile(f"{where}: does not unpack ({error})") from error
        full = len(out) == limit
        room -= len(out)
        yield out
        data = inflate.unconsumed_tail


def _spooled_blob(version: str, name: str, chunks: Iterator[bytes], expected_bytes: int) -> Blob:
    copy = spooled(version, name, chunks, expected_bytes)
    return Blob(LocalStorage(copy.parent), copy.name, 0, copy.stat().st_size, name, version)


def _gunzipped(blob: Blob) -> Iterator[bytes]:
    total = 0
    try:
        with gzip.GzipFile(fileobj=blob.open(_CHUNK_BYTES)) as file:
            while chunk := file.read(1 << 20):
                total += len(chunk)
                if reason := bomb(total, blob.size):
                    raise UserError(f"{blob.name}: {reason}: this is no dataset")
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(blob, "tar.gz", error) from error
