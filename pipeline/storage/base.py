"""Local directories and `s3://` behind one small interface.

Paths are relative to the root, with "/" between folders, on both. A write is atomic: a reader sees
the old bytes or the new ones, never a part. A storage pickles as its URI alone, so it may travel to
Ray workers, which connect for themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import Outage, UserError
from pipeline.storage.names import why_unusable


@dataclass(frozen=True)
class Entry:
    """A stored object."""

    path: str
    """Relative to the storage's root, "/" between folders."""
    size: int
    """Bytes."""


class DamagedFile(ValueError):
    """One object's bytes are not what they must be, though the storage itself works."""


class ObjectError(UserError):
    """One object cannot be read, though its storage answers: access is denied, for example."""


class ObjectOutage(ObjectError, Outage):
    """One object cannot be read, which may pass: of all others nothing is known."""


class Storage(ABC):
    """A tree of byte objects under one root.

    Every method raises UserError when a path could leave the root, and when the storage cannot be
    reached, does not exist or refuses.
    """

    uri: str
    """The root, absolute, without a trailing slash: `/data/ade` or `s3://bucket/prefix`."""

    def read(self, path: str) -> bytes:
        """Returns an object's bytes.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._at(path):
            return self._read(path)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on, never fewer.

        Raises:
            FileNotFoundError: There is no such object.
            UserError: The object ends before `offset + length`.
        """
        assert offset >= 0
        assert length >= 0
        with self._at(path):
            data = self._read_range(path, offset, length)
        if len(data) < length:
            raise UserError(
                f"{self.uri}/{path}: must have at least {offset + length} bytes: it was truncated "
                "or replaced since it was written; write it again"
            )
        return data

    def write(self, path: str, data: bytes) -> None:
        """Stores an object atomically, replacing what was there."""
        with self._at(path):
            self._write(path, data)

    def upload(self, path: str, local: Path | BinaryIO) -> None:
        """Stores a copy of a local file atomically, without holding it in memory.

        One that is opened for binary reading need not have a name.

        Raises:
            FileNotFoundError: The local file does not exist.
        """
        if isinstance(local, Path):
            if not local.is_file():
                raise FileNotFoundError(f"{local}: there is no such file")
            with local.open("rb") as file:
                return self.upload(path, file)
        with self._at(path):
            self._upload(path, local)

    def create(self, path: str, data: bytes) -> bool:
        """Stores an object only if there is none; of several that try at once one succeeds.

        Returns:
            Whether it was stored.
        """
        with self._at(path):
            return self._create(path, data)

    def replace(self, path: str, data: bytes, expected: bytes) -> bool:
        """Stores an object only in place of one that still holds `expected`.

        Returns:
            Whether it was stored.
        """
        try:
            with self._at(path):
                return self._replace(path, data, expected)
        except FileNotFoundError:
            return False

    def clean(self, prefix: str = "") -> int:
        """Removes what writers that were killed left half-written below a folder.

        No other process may be writing to the folder.

        Returns:
            How many half-written objects there were.
        """
        with self._in(prefix) as folder:
            return self._clean(folder)

    def exists(self, path: str) -> bool:
        """Whether there is an object (not a folder) at the path."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Returns an object's size in bytes.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._at(path):
            return self._size(path)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yields every object below a folder, at any depth, in the order of the paths' characters.

        A folder that does not exist yields nothing. Half-written files are not listed. Objects are
        listed whatever they are called, also where `why_unusable` says that none can be read.
        """
        with self._in(prefix) as folder:
            yield from self._list(folder)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Returns the names of the folders directly in a folder, sorted; none if it is missing.

        Folders whose names are no parts of a path are not among them.
        """
        with self._in(prefix) as folder:
            return tuple(sorted(name for name in self._folders(folder) if not why_unusable(name)))

    def files(self, prefix: str = "") -> Iterator[Entry]:
        """Yields the objects directly in a folder, in the order of their names."""
        with self._in(prefix) as folder:
            yield from self._files(folder)

    def version(self, path: str) -> str:
        """A text that changes when the object is replaced by another.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._at(path):
            return self._version(path)

    def delete(self, path: str) -> None:
        """Removes an object; removing one that is not there is no error."""
        with self._at(path):
            self._delete(path)

    def broken(self, prefix: str = "") -> Iterator[str]:
        """Yields what a folder names and does not hold, at any depth: links that lead nowhere.

        So are the files of git-annex and DVC until they are fetched. Pipes and devices are too.
        """
        with self._in(prefix) as folder:
            yield from self._broken(folder)

    def is_empty(self, prefix: str = "") -> bool:
        """Whether there is no object below a folder."""
        return next(iter(self.list(prefix)), None) is None

    def _at(self, path: str) -> AbstractContextManager[None]:
        """Checks the path of an object, and translates errors while it is worked on."""
        check_path(path)
        return self._translated(path)

    @contextmanager
    def _in(self, prefix: str) -> Iterator[str]:
        """Like `_at` for a folder; yields its path without a trailing slash."""
        folder = check_folder(prefix)
        with self._translated(folder):
            yield folder

    def _translated(self, path: str) -> AbstractContextManager[None]:
        """Turns the errors of the underlying system into those that this class promises."""
        return nullcontext()

    @abstractmethod
    def _read(self, path: str) -> bytes: ...

    @abstractmethod
    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        """May return fewer bytes at the end of the object."""

    def _write(self, path: str, data: bytes) -> None:
        raise self._read_only(path)

    def _upload(self, path: str, local: BinaryIO) -> None:
        """May be given a file whose position is anywhere."""
        raise self._read_only(path)

    def _create(self, path: str, data: bytes) -> bool:
        raise self._read_only(path)

    def _replace(self, path: str, data: bytes, expected: bytes) -> bool:
        raise self._read_only(path)

    def _delete(self, path: str) -> None:
        raise self._read_only(path)

    def _clean(self, prefix: str) -> int:
        return 0

    def _broken(self, prefix: str) -> Iterator[str]:
        return iter(())

    @abstractmethod
    def _size(self, path: str) -> int: ...

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[Entry]: ...

    @abstractmethod
    def _folders(self, prefix: str) -> Iterator[str]: ...

    @abstractmethod
    def _files(self, prefix: str) -> Iterator[Entry]: ...

    @abstractmethod
    def _version(self, path: str) -> str: ...

    def _read_only(self, path: str) -> UserError:
        return UserError(f"{self.uri}/{path}: is only read: give a folder to write into")

    def _missing(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self.uri}/{path}: there is no such file")


def check_path(path: str) -> None:
    """Checks a path within a storage.

    Raises:
        UserError: The path is absolute or could leave the root.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or "\\" in path:
        raise UserError(
            f"path {path!r}: must be relative, with '/' between folders and no '.', '..' or "
            "empty part: it may not leave the storage's root"
        )


def check_folder(prefix: str) -> str:
    """Returns a folder's path without its trailing slash; the empty path is the root.

    Raises:
        UserError: The path is absolute or could leave the root.
    """
    prefix = prefix.removesuffix("/")
    if prefix:
        check_path(prefix)
    return prefix
