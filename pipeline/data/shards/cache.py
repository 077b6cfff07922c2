"""Copies of remote shards on the disk of a node, shared by all processes on it.

    <folder>/<sha256>.tar        a verified copy; its modification time is its last use
    <folder>/<sha256>.partial    being fetched by the process that holds <sha256>.lock
    <folder>/evict.lock          held while room is made

A copy is named after its contents, so runs and buckets can share it, and a shard that was written
anew is another one. A sample whose shard is not here yet is left to the caller, which reads its
few bytes from afar while a thread fetches the whole shard: the first batch does not wait for
gigabytes. The random order of training uses every shard all the time, so throwing one out for the
next would fetch each of them again and again: room is made only at the cost of copies that were
not used for a while, the longest unused first. What does not fit stays remote.
"""

import hashlib
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.data.shards.format import ShardRecord
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.places import make_private

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "LSEG_CACHE_DIR"
IDLE_S = 900.0
"""A copy used within this time is in use, and stays."""
_CHUNK_BYTES = 8 << 20
_RETRY_S = 60.0
"""A shard that did not fit, or could not be fetched, is tried again after this time."""
_DISK_RESERVE = 0.05
"""Share of the disk that is left free, whatever the limit says."""
_TOUCH_S = 30.0
"""How often a copy that is read all the time is marked as used."""


def default_folder() -> Path:
    """The folder of the copies by default: `$LSEG_CACHE_DIR`, or one of the user in /tmp."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir(), f"lseg-cache-{os.getuid()}")


class ShardCache:
    """A size-bounded cache of shards in a folder of this node; threads may share one.

    Args:
        folder: Created if missing. Must belong to this user alone.
        limit_bytes: Most bytes of all copies together.
        idle_s: Copies that were used within this time are never thrown out.

    Raises:
        UserError: The folder cannot be made, or others could write into it.
    """

    def __init__(self, folder: Path, limit_bytes: int, idle_s: float = IDLE_S) -> None:
        self.folder = folder
        self._limit = limit_bytes
        self._idle_s = idle_s
        self._touched: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._wanted: queue.SimpleQueue[tuple[Storage, str, ShardRecord]] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        advice = f"give another folder, there or in ${FOLDER_VARIABLE}, or set data.cache_gib to 0"
        make_private(folder, f"data.cache_dir={folder}", advice)

    def read(
        self, storage: Storage, path: str, shard: ShardRecord, offset: int, length: int
    ) -> bytes | None:
        """Bytes of a shard from this node; None when it is not here (yet).

        Then a thread begins to fetch it, unless there is no room.
        """
        try:
            # Opened for each read: thousands of shards would be more files than a process may hold,
            # and an open file can be read to its end even if it is thrown out meanwhile.
            with self._copy(shard.sha256).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, offset)
                self._touch(shard.sha256, file.fileno())
        except FileNotFoundError:
            self._want(storage, path, shard)
            return None
        except OSError as error:
            # A failing disk of one node costs speed, not the run.
            logger.warning("%s: the copy of %s cannot be read: %s", self.folder, path, error)
            return None
        if len(data) == length:
            return data
        self.discard(shard)
        return None

    def discard(self, shard: ShardRecord) -> None:
        """Throws a copy out, because its bytes are not what they were."""
        self._copy(shard.sha256).unlink(missing_ok=True)

    def fetch(self, storage: Storage, path: str, shard: ShardRecord) -> bool:
        """Fetches a shard now, unless another process is about it or there is no room.

        Returns:
            Whether the shard is here.

        Raises:
            UserError: The storage does not answer.
            FileNotFoundError: There is no such shard.
        """
        copy, partial = self._copy(shard.sha256), self.folder / f"{shard.sha256}.partial"
        try:
            with FileLock(partial.with_suffix(".lock"), blocking=False):
                if copy.exists():
                    return True
                try:
                    if not self._make_room(partial, shard.size):
                        return False
                    if _download(storage, path, shard, partial):
                        os.replace(partial, copy)
                        return True
                    logger.warning("%s/%s: not as its manifest says; not kept", storage.uri, path)
                finally:
                    partial.unlink(missing_ok=True)
        except FileNotFoundError:
            raise
        except Timeout:  # Another process fetches it.
            return False
        except OSError as error:
            # A full or failing disk costs speed, not the run.
            logger.warning("%s: no copy of %s: %s", self.folder, path, error)
        return False

    def wait(self, timeout_s: float) -> bool:
        """Waits until everything asked for is here or refused; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        while self._queued:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _copy(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _touch(self, sha256: str, descriptor: int) -> None:
        now = time.monotonic()
        if now - self._touched.get(sha256, -_TOUCH_S) >= _TOUCH_S:
            self._touched[sha256] = now
            os.utime(descriptor)

    def _want(self, storage: Storage, path: str, shard: ShardRecord) -> None:
        with self._lock:
            again = self._refused.get(shard.sha256, 0.0)
            if shard.sha256 in self._queued or time.monotonic() < again:
                return
            self._queued.add(shard.sha256)
            self._wanted.put((storage, path, shard))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._fetch_wanted, name="shard-cache", daemon=True
                )
                self._thread.start()

    def _fetch_wanted(self) -> None:
        while True:
            storage, path, shard = self._wanted.get()
            is_here = False
            try:
                is_here = self.fetch(storage, path, shard)
            except (OSError, UserError) as error:
                # The caller, which reads the sample itself, meets the same error and reports it,
                # unless there was only no room for a lock.
                logger.warning("no copy of %s/%s: %s", storage.uri, path, error)
            finally:
                with self._lock:
                    self._queued.discard(shard.sha256)
                    if not is_here:
                        self._refused[shard.sha256] = time.monotonic() + _RETRY_S

    def _make_room(self, partial: Path, size: int) -> bool:
        """Throws out what is not in use until `size` more bytes fit; False if they do not.

        Where they do, `partial` takes that size at once, so that other writers reckon with it.
        """
        with FileLock(self.folder / "evict.lock"):
            used, candidates = 0, []
            for path in self.folder.iterdir():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if path.suffix == ".tar":
                    candidates.append((status.st_mtime, status.st_size, path))
                elif path.suffix != ".partial":
                    continue
                elif path != partial and _is_orphan(path):
                    path.unlink(missing_ok=True)
                    continue
                used += status.st_size
            disk = shutil.disk_usage(self.folder)
            room = min(self._limit - used, int(disk.free - _DISK_RESERVE * disk.total))
            for last_use, freed, path in sorted(candidates):
                if room >= size or time.time() - last_use < self._idle_s:
                    break
                path.unlink(missing_ok=True)
                room += freed
            if room < size:
                return False
            with partial.open("wb") as file:
                file.truncate(size)
            return True


def _is_orphan(partial: Path) -> bool:
    """Whether the writer of a half-written copy is gone: the kernel frees a dead one's lock."""
    try:
        with FileLock(partial.with_suffix(".lock"), blocking=False):
            return True
    except Timeout:
        return False


def _download(storage: Storage, path: str, shard: ShardRecord, partial: Path) -> bool:
    """Fetches a shard in pieces; False if it is not what its manifest says, twice."""
    for _ in range(2):
        found = hashlib.sha256()
        with partial.open("r+b") as file:
            for offset in range(0, shard.size, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, shard.size - offset)
                piece = storage.read_range(path, offset, length)
                found.update(piece)
                file.write(piece)
        if found.hexdigest() == shard.sha256:
            return True
    return False
