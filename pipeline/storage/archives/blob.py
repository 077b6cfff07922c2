"""A byte range of a stored object, as a file: an archive, or one within another."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.storage.base import Storage


@dataclass(frozen=True)
class Blob:
    """A stored object, or a part of one, that holds an archive."""

    storage: Storage
    path: str
    offset: int
    size: int
    name: str
    """The name in messages."""
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

    def chunks(self, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """All bytes in order, in pieces."""
        return (self.read(start, chunk_bytes) for start in range(0, self.size, chunk_bytes))

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

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        if start + offset < 0:
            raise OSError(f"seek to {start + offset}")  # As files do; zipfile counts on it.
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._blob.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
