"""Node-local copies of what can only be read in order: a .tar.gz, or a deflated zip in a zip.

A copy is made once on each node and shared by its processes: the first that needs it takes a lock
and writes, the others wait. Copies lie below the folder for temporary files (`TMPDIR`), readable by
this user alone, and are kept for later runs; one that was not used for a week is deleted when the
next one is made.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_RESERVE_BYTES = 1 << 30
"""Left free on the disk: other programs use it too."""
_KEPT_S = 7 * 24 * 3600
_PARTIAL = ".partial"
_LOCK = ".lock"


def spooled(key: str, what: str, chunks: Iterator[bytes], expected_bytes: int = 0) -> Path:
    """Returns the file that holds some bytes, writing it unless this node has it already.

    Args:
        key: Names the content, with a version that changes when the content does.
        what: Names the content in messages.
        chunks: The content in order; not touched when the node has it.
        expected_bytes: The size, or what is known of it, to refuse at once what cannot fit.

    Raises:
        UserError: The disk is too small, or the folder belongs to another user. Whatever `chunks`
            raises passes through, and nothing is kept then.
    """
    folder = _folder()
    target = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    if _touched(target):
        return target
    with _locked(target.with_suffix(_LOCK), what):
        if _touched(target):
            return target
        _delete_unused(folder)
        _check_room(folder, expected_bytes, what)
        partial = target.with_suffix(_PARTIAL)
        try:
            _write(partial, chunks, what)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"lseg-spool-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise UserError(
            f"{folder}: must be a folder that this user alone may enter: delete it, or "
            "set TMPDIR to another place"
        )
    return folder


def _touched(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _locked(path: Path, what: str) -> AcquireReturnProxy:
    lock = FileLock(path)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that reads %s", what)
        return lock.acquire()  # The kernel frees it should that process die.


def _write(path: Path, chunks: Iterator[bytes], what: str) -> None:
    unchecked = 0
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                unchecked += len(chunk)
                if unchecked > _RESERVE_BYTES // 8:
                    _check_room(path.parent, len(chunk), what)
                    unchecked = 0
                file.write(chunk)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot hold a copy of {what} ({error.strerror}): set TMPDIR to a "
            "larger disk, or unpack the archive"
        ) from error


def _check_room(folder: Path, num_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _RESERVE_BYTES:
        raise UserError(
            f"{folder}: has {free / 2**30:.1f} GiB free, a copy of {what} needs at least "
            f"{(num_bytes + _RESERVE_BYTES) / 2**30:.1f} GiB: set TMPDIR to a larger disk, or "
            "unpack the archive"
        )


def _delete_unused(folder: Path) -> None:
    oldest = time.time() - _KEPT_S
    for path in folder.iterdir():
        # Lock files stay: deleting one that is held would let two processes in.
        if path.suffix == _LOCK:
            continue
        # Another process may finish or delete its own file in between: that one is not unused.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
