"""Local directories and `s3://` behind one small interface.

Paths are relative to the root, with "/" between folders, on both. A write is atomic: a reader sees
the old bytes or the new ones, never a part. A storage pickles as its URI alone, so it may travel to
Ray workers, which connect for themselves.
"""

import fcntl
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError

_PARTIAL = ".partial"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A stored object."""

    path: str
    """Relative to the storage's root, "/" between folders."""
    size: int
    """In bytes."""


class DamagedFile(ValueError):
    """One object's bytes are not what they must be, though the storage itself works."""


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
        check_path(path)
        with self._translated(path):
            return self._read(path)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on, never fewer.

        Raises:
            FileNotFoundError: There is no such object.
            UserError: The object ends before `offset + length`.
        """
        assert offset >= 0
        assert length >= 0
        check_path(path)
        with self._translated(path):
            data = self._read_range(path, offset, length)
        if len(data) < length:
            raise UserError(
                f"{self.uri}/{path}: must have at least {offset + length} bytes: it was truncated "
                "or replaced since it was written; write it again"
            )
        return data

    def write(self, path: str, data: bytes) -> None:
        """Stores an object atomically, replacing what was there."""
        check_path(path)
        with self._translated(path):
            self._write(path, data)

    def upload(self, path: str, local: Path | BinaryIO) -> None:
        """Stores a copy of a local file atomically, without holding it in memory.

        Args:
            path: Where to.
            local: The file, or it opened for binary reading; then it need not have a name.

        Raises:
            FileNotFoundError: The local file does not exist.
        """
        check_path(path)
        if not isinstance(local, Path):
            with self._translated(path):
                self._upload(path, local)
            return
        if not local.is_file():
            raise FileNotFoundError(f"{local}: there is no such file")
        with local.open("rb") as file, self._translated(path):
            self._upload(path, file)

    def create(self, path: str, data: bytes) -> bool:
        """Stores an object only if there is none; of several that try at once one succeeds.

        Returns:
            Whether it was stored.
        """
        check_path(path)
        with self._translated(path):
            return self._create(path, data)

    def replace(self, path: str, data: bytes, expected: bytes) -> bool:
        """Stores an object only in place of one that still holds `expected`.

        Returns:
            Whether it was stored.
        """
        check_path(path)
        try:
            with self._translated(path):
                return self._replace(path, data, expected)
        except FileNotFoundError:
            return False

    def clean(self, prefix: str = "") -> int:
        """Removes what writers that were killed left half-written below a folder.

        Only for a folder that nobody else is writing to.

        Returns:
            How many half-written objects there were.
        """
        prefix = check_folder(prefix)
        with self._translated(prefix):
            return self._clean(prefix)

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
        check_path(path)
        with self._translated(path):
            return self._size(path)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yields every object below a folder, at any depth, in the order of the paths' characters.

        A folder that does not exist yields nothing. Half-written files are not listed.
        """
        prefix = check_folder(prefix)
        with self._translated(prefix):
            yield from self._list(prefix)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Returns the names of the folders directly in a folder, sorted; none if it is missing."""
        prefix = check_folder(prefix)
        with self._translated(prefix):
            return tuple(sorted(self._folders(prefix)))

    def files(self, prefix: str = "") -> Iterator[Entry]:
        """Yields the objects directly in a folder, in the order of their names."""
        prefix = check_folder(prefix)
        with self._translated(prefix):
            yield from self._files(prefix)

    def version(self, path: str) -> str:
        """A text that changes when the object is replaced by another.

        Raises:
            FileNotFoundError: There is no such object.
        """
        check_path(path)
        with self._translated(path):
            return self._version(path)

    def delete(self, path: str) -> None:
        """Removes an object; removing one that is not there is no error."""
        check_path(path)
        with self._translated(path):
            self._delete(path)

    def is_empty(self, prefix: str = "") -> bool:
        """Whether there is no object below a folder."""
        return next(iter(self.list(prefix)), None) is None

    @abstractmethod
    def _translated(self, path: str) -> AbstractContextManager[None]:
        """Turns the errors of the underlying system into those that this class promises."""

    @abstractmethod
    def _read(self, path: str) -> bytes: ...

    @abstractmethod
    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        """May return fewer bytes at the end of the object."""

    @abstractmethod
    def _write(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def _upload(self, path: str, local: BinaryIO) -> None:
        """May be given a file whose position is anywhere."""

    def _create(self, path: str, data: bytes) -> bool:
        raise UserError(f"{self.uri}/{path}: this kind of storage can only be read")

    def _replace(self, path: str, data: bytes, expected: bytes) -> bool:
        raise UserError(f"{self.uri}/{path}: this kind of storage can only be read")

    def _clean(self, prefix: str) -> int:
        return 0

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

    @abstractmethod
    def _delete(self, path: str) -> None: ...

    def _missing(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self.uri}/{path}: there is no such file")


def open_storage(uri: str) -> Storage:
    """Opens a local directory or an S3 prefix; neither has to exist yet, and nothing is contacted.

    Args:
        uri: A local path, absolute or relative to the working directory, `file:///path`, or
            `s3://bucket/prefix`.

    Raises:
        UserError: The URI is none of these.
    """
    if match := re.fullmatch(r"s3://([^/]+)(?:/(.*))?", uri):
        from pipeline.data.storage_s3 import S3Storage  # loads boto3 only where S3 is used

        return S3Storage(match[1], check_folder((match[2] or "").strip("/")))
    if uri.startswith("file:///"):
        return LocalStorage(Path(uri.removeprefix("file://")))
    if not uri or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", uri):
        raise UserError(
            f"storage {uri!r}: must be a local directory or s3://bucket/prefix: correct the URI"
        )
    return LocalStorage(Path(uri))


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


class LocalStorage(Storage):
    """A directory. Symbolic links are followed: datasets are often linked into place."""

    def __init__(self, root: Path) -> None:
        # Absolute, because Ray workers run in other working directories.
        self._root = Path(os.path.abspath(root.expanduser()))
        self.uri = str(self._root)

    def _read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _write(self, path: str, data: bytes) -> None:
        self._store(path, lambda partial: partial.write_bytes(data))

    def _upload(self, path: str, local: BinaryIO) -> None:
        def copy(partial: Path) -> None:
            local.seek(0)
            with partial.open("wb") as file:
                shutil.copyfileobj(local, file, _COPY_BYTES)

        self._store(path, copy)

    def _create(self, path: str, data: bytes) -> bool:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(data)
        except FileExistsError:
            if target.is_dir():
                raise
            return False
        return True

    def _replace(self, path: str, data: bytes, expected: bytes) -> bool:
        target = self._root / path
        with target.open("rb") as file:
            # Held by whoever compares and replaces; the kernel lets go of a dead one's.
            fcntl.flock(file, fcntl.LOCK_EX)
            is_current = os.fstat(file.fileno()).st_ino == target.stat().st_ino
            if not is_current or file.read() != expected:
                return False
            self._write(path, data)
            return True

    def _clean(self, prefix: str) -> int:
        found = list((self._root / prefix).rglob(f".*{_PARTIAL}"))
        for partial in found:
            partial.unlink(missing_ok=True)
        return len(found)

    def _store(self, path: str, fill: Callable[[Path], object]) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")
        try:
            fill(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _size(self, path: str) -> int:
        file = self._root / path
        if not file.is_file():
            raise self._missing(path)
        return file.stat().st_size

    def _list(self, prefix: str) -> Iterator[Entry]:
        return self._walk(prefix, ())

    def _walk(self, folder: str, parents: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        try:
            status = os.stat(self._root / folder)
            with os.scandir(self._root / folder) as scan:
                # "/" after a folder's name: its files then sort as S3 sorts whole keys.
                items = sorted((item.name + "/" * item.is_dir(), item.is_file()) for item in scan)
        except (FileNotFoundError, NotADirectoryError):
            return
        identity = (status.st_dev, status.st_ino)
        if identity in parents:  # a symbolic link to a folder that holds it
            return
        for name, is_file in items:
            path = f"{folder}/{name}" if folder else name
            if name.endswith("/"):
                yield from self._walk(path.removesuffix("/"), (*parents, identity))
            elif is_file and not (name.startswith(".") and name.endswith(_PARTIAL)):
                yield Entry(path, os.stat(self._root / path).st_size)

    def _folders(self, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self._root / prefix) as scan:
                yield from (item.name for item in scan if item.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return

    def _files(self, prefix: str) -> Iterator[Entry]:
        try:
            with os.scandir(self._root / prefix) as scan:
                names = sorted(item.name for item in scan if item.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            path = f"{prefix}/{name}" if prefix else name
            if not (name.startswith(".") and name.endswith(_PARTIAL)):
                yield Entry(path, os.stat(self._root / path).st_size)

    def _version(self, path: str) -> str:
        status = os.stat(self._root / path)
        return f"{status.st_size}-{status.st_mtime_ns}"

    def _delete(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise UserError(
                f"{self.uri}/{path}: a file is where a folder must be: give another directory"
            ) from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self._missing(path) from error
        except PermissionError as error:
            raise UserError(
                f"{self.uri}/{path}: permission denied: give this user access to the directory"
            ) from error
