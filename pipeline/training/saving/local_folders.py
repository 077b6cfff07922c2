"""The folders on a node's own disk in which checkpoints wait for the storage.

Each is locked as long as it is used. The system releases the lock of a process that dies, however
it dies, so the folders that a killed worker of the same run left on this node can be recognised.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from pipeline.training.config import RunConfig

logger = logging.getLogger(__name__)

_NAME_LENGTH = 60


class LocalFolders:
    """The folders of one run, below `TMPDIR`; the same name in another storage is another run."""

    def __init__(self, run: RunConfig) -> None:
        digest = hashlib.sha256(f"{run.storage}\n{run.name}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", run.name)[:_NAME_LENGTH]
        self._prefix = f"lseg-checkpoint-{name}-{digest}-"
        self._locks: dict[Path, int] = {}

    @property
    def place(self) -> Path:
        """The folder in which they lie."""
        return Path(tempfile.gettempdir())

    def new(self) -> Path:
        """Makes an empty folder, which is locked until `remove`.

        Raises:
            OSError: There is no room for it.
        """
        while True:
            folder = Path(tempfile.mkdtemp(prefix=self._prefix))
            # A process that removes abandoned folders may come between making and locking: a
            # folder that is gone by then is made anew.
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError as error:  # Some file systems, such as NFS, lock no folders.
                    os.close(lock)
                    logger.debug(
                        "%s cannot be locked (%s): left alone if it is left", folder, error
                    )
                    return folder
                if folder.is_dir():
                    self._locks[folder] = lock
                    return folder
                os.close(lock)

    def remove(self, folder: Path) -> None:
        """Removes a folder with its content, and releases its lock."""
        shutil.rmtree(folder, ignore_errors=True)
        lock = self._locks.pop(folder, None)
        if lock is not None:
            os.close(lock)

    def remove_left(self) -> int:
        """Removes the folders that dead processes of this run left here; returns their number."""
        pattern = re.compile(re.escape(self._prefix) + "[a-z0-9_]+")
        removed = 0
        for folder in self.place.glob("lseg-checkpoint-*"):
            if not pattern.fullmatch(folder.name) or folder.is_symlink():
                continue
            with contextlib.suppress(OSError):  # In use, another user's, or just gone.
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                    removed += 1
                finally:
                    os.close(lock)
        if removed:
            logger.info("removed %d unfinished checkpoints that a killed worker left", removed)
        return removed
