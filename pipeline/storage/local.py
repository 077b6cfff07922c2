"""A local directory as storage."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from pipeline.errors import Outage, UserError, told_by_system
from pipeline.storage.base import Entry, ObjectError, ObjectOutage, Storage
from pipeline.storage.names import is_hidden
from pipeline.storage.outages import AWAY, PASSES, patient

_PARTIAL, _LOCK = ".partial", ".lock"
_COPY_BYTES = 1 << 20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStorage(Storage):
    """A directory. Symbolic links are followed: datasets are often linked into place."""

    def __init__(self, root: Path) -> None:
        # Absolute, because Ray workers run in other working directories.
        self._root = Path(os.path.abspath(root.expanduser()))
        self.uri = str(self._root)

    @patient
    def _read(self, path: str) -> bytes:
        with self._opened(path) as file:
            return file.read()

    @patient
    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        with self._opened(path) as file:
            file.seek(offset)
            return file.read(length)

    def _opened(self, path: str) -> BinaryIO:
        # To open a pipe would wait for its writer, and a device has no end.
        try:
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:  # A socket.
                raise self._missing(path, "is no plain file") from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._missing(path, "is no plain file")
        return os.fdopen(descriptor, "rb")

    @patient
    def _write(self, path: str, data: bytes) -> None:
        self._store(path, lambda partial: partial.write_bytes(data))

    @patient
    def _upload(self, path: str, local: BinaryIO) -> None:
        def copy(partial: Path) -> None:
            local.seek(0)
            with partial.open("wb") as file:
                shutil.copyfileobj(local, file, _COPY_BYTES)

        self._store(path, copy)

    @patient
    def _create(self, path: str, data: bytes) -> bool:
        target = self._root / path
        self._make_folder(target.parent)
        partial = _partial_of(target)
        try:
            partial.write_bytes(data)
            _link(partial, target)
            return True
        except FileExistsError:
            if target.is_dir():
                raise
            return False
        finally:
            partial.unlink(missing_ok=True)

    @patient
    def _replace(self, path: str, data: bytes, expected: bytes) -> bool:
        target = self._root / path
        if target.read_bytes() != expected:
            return False
        with FileLock(_lock_of(target), fallback_to_soft=False):
            if target.read_bytes() != expected:
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
        self._make_folder(target.parent)
        partial = _partial_of(target)
        try:
            fill(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # Some file systems, such as /proc, take no folders.
            raise UserError(
                f"{folder}: must be a folder that can be made, and its file system refuses it: "
                "give another"
            ) from error

    @patient
    def _size(self, path: str) -> int:
        file = self._root / path
        if not file.is_file():
            raise self._missing(path)
        return file.stat().st_size

    def _list(self, prefix: str, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
        if not (names := self._scan(prefix)):
            return
        try:
            status = self._stat(prefix)
        except FileNotFoundError:  # Another process deleted it since the scan.
            return
        identity = (status.st_dev, status.st_ino)
        if identity in parents:  # a symbolic link to a folder that holds it
            return
        for name in names:
            path = f"{prefix}/{name}" if prefix else name
            if name.endswith("/"):
                yield from self._list(path.removesuffix("/"), (*parents, identity))
            else:
                yield from self._entries([path])

    def _broken(self, prefix: str) -> Iterator[str]:
        def look(folder: str) -> Iterator[str]:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda item: item.name)
            for item in found:
                if is_hidden(item.name):
                    continue
                if item.is_dir(follow_symlinks=False):
                    yield from look(item.path)
                elif not _ending(item):
                    yield os.path.relpath(item.path, self._root)

        if (self._root / prefix).is_dir():
            yield from look(str(self._root / prefix))

    def _folders(self, prefix: str) -> Iterator[str]:
        return (name.removesuffix("/") for name in self._scan(prefix) if name.endswith("/"))

    def _files(self, prefix: str) -> Iterator[Entry]:
        names = (name for name in self._scan(prefix) if not name.endswith("/"))
        return self._entries(f"{prefix}/{name}" if prefix else name for name in names)

    @patient
    def _scan(self, folder: str) -> list[str]:
        """The names in a folder without half-written files and locks; none if it is missing."""
        try:
            with os.scandir(self._root / folder) as scan:
                # "/" after a folder's name: its files then sort as S3 sorts whole keys.
                names = sorted(item.name + end for item in scan for end in _ending(item))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            if is_hidden(folder):  # As `lost+found` at the root of a disk.
                return []
            raise _closed(error) from error
        return [n for n in names if not (n.startswith(".") and n.endswith((_PARTIAL, _LOCK)))]

    def _entries(self, paths: Iterable[str]) -> Iterator[Entry]:
        for path in paths:
            # What another process deleted since the scan is no longer there to be listed.
            try:
                size = self._stat(path).st_size
            except FileNotFoundError:
                continue
            except PermissionError as error:  # A folder may be listed and not be entered.
                raise _closed(error) from error
            yield Entry(path, size)

    @patient
    def _stat(self, path: str) -> os.stat_result:
        return os.stat(self._root / path)

    def _version(self, path: str) -> str:
        status = self._stat(path)
        return f"{status.st_size}-{status.st_mtime_ns}"

    @patient
    def _delete(self, path: str) -> None:
        target = self._root / path
        target.unlink(missing_ok=True)
        if (lock := _lock_of(target)).exists():
            with FileLock(lock, fallback_to_soft=False):
                # A process that waits for it sees that the file is gone.
                lock.unlink(missing_ok=True)

    def _missing(self, path: str, what: str = "") -> FileNotFoundError:
        if not what and (self._root / path).is_symlink():
            what = "is a link to nothing: fetch what it stands for, or remove it"
        return FileNotFoundError(f"{self.uri}/{path}: {what}") if what else super()._missing(path)

    def _refused(self, path: str, error: OSError) -> UserError:
        """The message of an error that the system has for a file, whatever it is."""
        kind = Outage if error.errno in _OF_ALL else ObjectError
        if error.errno in PASSES:
            kind = Outage if error.errno in AWAY else ObjectOutage
        told = told_by_system(error)
        check = "network file system" if error.errno in PASSES else "name and the file system"
        told = told or f"{error.strerror or error}: check the {check}"
        return kind(f"{self.uri}/{path}: the file system refuses it: {told}")

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise UserError(
                f"{self.uri}/{path}: a file is where a folder must be: give another directory"
            ) from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if error.errno is None:  # One of ours.
                raise
            raise self._missing(path) from error
        except PermissionError as error:
            raise ObjectError(
                f"{self.uri}/{path}: permission denied: give this user access to the directory"
            ) from error
        except OSError as error:
            raise self._refused(path, error) from error


_OF_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors that concern the whole storage rather than one object."""


def _ending(item: os.DirEntry[str]) -> tuple[str, ...]:
    """What ends the name of a folder or a file; nothing for pipes, devices and dead links."""
    try:
        return ("/",) if item.is_dir() else ("",) if item.is_file() else ()
    except OSError as error:
        if error.errno == errno.ELOOP:  # A link to itself leads nowhere, as a dead one.
            return ()
        raise  # Where this user may not go, or what does not answer: it may be a file.


def _closed(error: PermissionError) -> ObjectError:
    """The message of a folder whose content is unknown, so that nothing says how much is lost."""
    return ObjectError(
        f"{error.filename}: permission denied, so that it is not known what is there: give this "
        "user access to it, or move it elsewhere"
    )


def _partial_of(target: Path) -> Path:
    """A file beside it, to be filled before it takes the place."""
    return target.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")


def _link(partial: Path, target: Path) -> None:
    """Gives a whole file a place that is free: a process killed meanwhile leaves all or nothing."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # On such a file system, as FAT is one, the place is taken before it is filled.
        with target.open("xb") as file:
            file.write(partial.read_bytes())


def _lock_of(target: Path) -> Path:
    """The file that `_replace` locks; not the object's own, which a write changes for another."""
    return target.with_name(f".{target.name}{_LOCK}")
