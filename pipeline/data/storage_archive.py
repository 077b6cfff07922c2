"""Zip and tar archives, read in place: a table of their members, and any member's bytes.

A zip is read by its central directory, so one range request fetches a member. A plain tar has no
directory: its headers are walked once on each node, and the table is kept there (`spool`). A
.tar.gz can only be read in order: it is decompressed once into a copy on each node.

Archives come from outside. A member whose name could leave the archive, a link, a device, an
encrypted member and one that would expand beyond reason is refused and reported, never followed.
"""

import gzip
import io
import json
import stat
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.spool import spooled
from pipeline.data.storage import DamagedFile, LocalStorage, Storage
from pipeline.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""The archives that are read, by the ends of their names."""

_MAX_READ_BYTES = 4 << 30
_MAX_MEMBERS = 10_000_000
_MAX_RATIO = 200
"""The most that a large member may expand. Real ones are pictures (about 1) and JSON (about 10)."""
_LARGE_BYTES = 64 << 20
_CHUNK_BYTES = 8 << 20
_HEADER_BUFFER_BYTES = 64 << 10
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_TAR_MEMBER = -1
"""Stands for a method of compression in the table of a tar."""


@dataclass(frozen=True)
class Blob:
    """A stored object, or a part of one, that holds an archive."""

    storage: Storage
    path: str
    offset: int
    size: int
    name: str
    """For messages."""
    copied_from: str = ""
    """The version of what this is a copy of."""

    @classmethod
    def of(cls, storage: Storage, path: str) -> "Blob":
        """The whole of a stored object."""
        return cls(storage, path, 0, storage.size(path), f"{storage.uri}/{path}")

    @property
    def version(self) -> str:
        """Changes when the content does."""
        if self.copied_from:
            return self.copied_from
        return f"{self.name}|{self.storage.version(self.path)}|{self.offset}|{self.size}"

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on, fewer at the end."""
        length = max(0, min(length, self.size - start))
        return self.storage.read_range(self.path, self.offset + start, length)

    def open(self, buffer_bytes: int) -> io.BufferedReader:
        """A seekable file; each refill of its buffer is one request."""
        return io.BufferedReader(_BlobFile(self), buffer_bytes)


class _BlobFile(io.RawIOBase):
    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._blob.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Archive:
    """The members of one archive.

    Args:
        blob: The archive.

    Raises:
        UserError: It is damaged, cut short, or not of the kind that its name says.
    """

    def __init__(self, blob: Blob) -> None:
        self.name = blob.name
        self._is_zip = blob.name.lower().endswith(".zip")
        if blob.name.lower().endswith((".tar.gz", ".tgz")):
            blob = _decompressed(blob)
        self._blob = blob
        rows, self.refused = _zip_rows(blob) if self._is_zip else _tar_rows(blob)
        self.names: list[str] = sorted(rows)
        """Safe paths of the members that can be read, sorted."""
        table = [rows[name] for name in self.names]
        self._table = np.array(table, np.int64).reshape(-1, 5)  # 40 bytes a member, not 400
        self.refused: tuple[tuple[str, str], ...]
        """Name and reason of each member that is not read."""

    def __contains__(self, name: str) -> bool:
        place = bisect_left(self.names, name)
        return place < len(self.names) and self.names[place] == name

    @property
    def version(self) -> str:
        """Changes when the archive does."""
        return self._blob.version

    def size(self, name: str) -> int:
        """Bytes of a member, as it unpacks."""
        return self._row(name)[1]

    def size_at(self, place: int) -> int:
        """Bytes of the member `names[place]`."""
        return int(self._table[place, 1])

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            DamagedFile: They are not those that the archive's directory promises.
        """
        offset, size, packed, method, crc = self._row(name)
        if size > _MAX_READ_BYTES:
            raise DamagedFile(
                f"{self.name}: {name} has {size} bytes, more than can be read at once"
            )
        return b"".join(self._chunks(name, packed + 1))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Bytes of a member from `start` on, fewer at its end; cheap where it is not compressed."""
        if (part := self.plain_part(name)) is not None:
            return part.read(start, length)
        return self.read(name)[start : start + length]

    def plain_part(self, name: str) -> Blob | None:
        """The part of the archive that is a member as it is, or None if that is compressed."""
        offset, size, packed, method, _ = self._row(name)
        if method == _DEFLATED:
            return None
        if method == _STORED:
            offset, _ = self._data(name, offset, 0)
        blob = self._blob
        return Blob(blob.storage, blob.path, blob.offset + offset, size, f"{self.name}/{name}")

    def spooled_part(self, name: str) -> Blob:
        """A member as a file of its own: where it lies, or decompressed into a node-local copy."""
        if (part := self.plain_part(name)) is not None:
            return part
        where = f"{self.name}/{name}"
        chunks = self._chunks(name, _CHUNK_BYTES)
        version = f"{self._blob.version}|{name}"
        copy = spooled(version, where, chunks, self.size(name))
        return _whole(copy, where, version)

    def _row(self, name: str) -> tuple[int, int, int, int, int]:
        place = bisect_left(self.names, name)
        if place == len(self.names) or self.names[place] != name:
            raise FileNotFoundError(f"{self.name}/{name}: there is no such file")
        offset, size, packed, method, crc = self._table[place].tolist()
        return offset, size, packed, method, crc

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
        if method != _TAR_MEMBER:
            offset, first = self._data(name, offset, min(packed, chunk_bytes))
        inflate = zlib.decompressobj(-15) if method == _DEFLATED else None
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
        if total != size or (method != _TAR_MEMBER and checksum != crc):
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


def _zip_rows(blob: Blob) -> tuple[dict[str, tuple[int, ...]], tuple[tuple[str, str], ...]]:
    try:
        with zipfile.ZipFile(blob.open(1 << 20)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(blob, "zip", error) from error
    return _rows(blob.name, ((info.filename, *_zip_row(info, blob.size)) for info in infos))


def _zip_row(info: zipfile.ZipInfo, size: int) -> tuple[str, tuple[int, ...]]:
    row = (info.header_offset, info.file_size, info.compress_size, info.compress_type, info.CRC)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return "folder", row
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device", row
    if info.flag_bits & 1:
        return "is encrypted", row
    if info.compress_type not in (_STORED, _DEFLATED):
        return f"is compressed by method {info.compress_type}: must be stored or deflated", row
    if not 0 <= info.header_offset <= info.header_offset + info.compress_size <= size:
        return "lies outside the archive", row
    if info.compress_type == _STORED and info.file_size != info.compress_size:
        return "is stored, but its two sizes differ", row
    return _bomb(info.file_size, info.compress_size), row


def _tar_rows(blob: Blob) -> tuple[dict[str, tuple[int, ...]], tuple[tuple[str, str], ...]]:
    """Walks the headers once on each node; later processes there read the kept table."""
    table = spooled(f"tar index 1|{blob.version}", f"the index of {blob.name}", _walked(blob))
    rows, refused = json.loads(table.read_bytes())
    return (
        {name: (offset, size, size, _TAR_MEMBER, 0) for name, offset, size in rows},
        tuple((name, reason) for name, reason in refused),
    )


def _walked(blob: Blob) -> Iterator[bytes]:
    rows, refused = _rows(blob.name, _tar_members(blob))
    plain = [[name, row[0], row[1]] for name, row in rows.items()]
    yield json.dumps([plain, refused]).encode()


def _tar_members(blob: Blob) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    try:
        with tarfile.open(fileobj=blob.open(_HEADER_BUFFER_BYTES), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # It would keep them all.
                row = (member.offset_data, member.size)
                if member.isdir():
                    reason = "folder"
                elif not member.isreg() or member.issparse():
                    reason = "is a link, a device or sparse"
                elif member.offset_data + member.size > blob.size:
                    raise tarfile.ReadError("unexpected end of data")
                else:
                    reason = ""
                yield member.name, reason, row
            # tarfile takes a damaged header for the end; the real end is zeros, or nothing.
            if blob.read(archive.offset, tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(blob, "tar", error) from error


def _rows(
    where: str, members: Iterable[tuple[str, str, tuple[int, ...]]]
) -> tuple[dict[str, tuple[int, ...]], tuple[tuple[str, str], ...]]:
    """Keeps the members that can be read, by their safe names; the last of equal names counts."""
    rows: dict[str, tuple[int, ...]] = {}
    refused = []
    for name, reason, row in members:
        path, bad_name = _safe_name(name)
        # What macOS adds is no content, and folders follow from the files in them.
        if reason == "folder" or not path or path.startswith("__MACOSX/"):
            if not bad_name:
                continue
        reason = bad_name or reason
        if reason:
            refused.append((name.encode("utf-8", "backslashreplace").decode(), reason))
        else:
            rows[path] = row
        if len(rows) + len(refused) > _MAX_MEMBERS:
            raise UserError(f"{where}: must have at most {_MAX_MEMBERS} members: unpack it")
    return rows, tuple(refused)


def _safe_name(name: str) -> tuple[str, str]:
    """A member's path within the archive, and why it has none, if so."""
    if name.startswith("/") or name[1:2] == ":":
        return "", "has an absolute name"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        return "", "has a name that leaves the archive"
    if "\\" in name or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "", "has a name with a backslash or a character that is no text"
    return "/".join(parts), ""


def _bomb(size: int, packed: int) -> str:
    if size > _LARGE_BYTES and size > _MAX_RATIO * packed:
        return f"would unpack to {size} bytes from {packed}: more than {_MAX_RATIO} times"
    return ""


def _decompressed(blob: Blob) -> Blob:
    """A .tar.gz as a plain tar in a node-local copy."""
    version = f"gunzip 1|{blob.version}"
    copy = spooled(version, blob.name, _gunzipped(blob), blob.size)
    return _whole(copy, blob.name, version)


def _whole(copy: Path, name: str, version: str) -> Blob:
    return Blob(LocalStorage(copy.parent), copy.name, 0, copy.stat().st_size, name, version)


def _gunzipped(blob: Blob) -> Iterator[bytes]:
    total = 0
    try:
        with gzip.GzipFile(fileobj=blob.open(_CHUNK_BYTES)) as file:
            while chunk := file.read(1 << 20):
                total += len(chunk)
                if reason := _bomb(total, blob.size):
                    raise UserError(f"{blob.name}: {reason}: this is no dataset")
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(blob, "tar.gz", error) from error


def _damaged(blob: Blob, kind: str, error: Exception) -> UserError:
    return UserError(
        f"{blob.name}: must be a whole .{kind} archive ({type(error).__name__}: {error}): it is "
        "damaged or cut short; download it again"
    )
