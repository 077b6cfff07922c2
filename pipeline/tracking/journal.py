"""The journal: every tracking record of a run in a local file, and a cursor behind what was sent.

Records are appended at the end by the threads that log, and read from the cursor on by the one
that sends. What the disk does not take waits in memory, behind the file's lines. The cursor is a
mark in the file: `#` in place of the first character of the last line that was sent. A process
that was killed is followed by one that continues there; a mark that was not written only means
that records are sent twice, which does no harm.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from filelock import BaseFileLock, FileLock

from pipeline.tracking.records import Record, RunIdentity, from_line, to_line

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18  # bytes of one read
_SLACK = 1 << 20  # bytes of sent lines that may stay in the file, if few lines follow them
_SENT = b"#"
_AT_ONCE = 100  # records written from memory without letting go of the lock


class JournalClosed(Exception):
    """The journal was sealed; a thread that comes late must not touch it any more."""


class Journal:
    """Append at the end, read from the cursor: one process at a time, and one thread that reads."""

    def __init__(
        self, path: Path | None, identity: RunIdentity | None = None, max_in_memory: int = 0
    ) -> None:
        """Prepares without touching the disk.

        Args:
            path: The file; None: memory only.
            identity: The run whose records are appended; None for a reader of what others wrote.
            max_in_memory: Most records kept while the disk takes none; enforced by `flush`.
        """
        self.path, self.identity = path, identity
        self.lost = 0
        """Records that neither the disk nor the memory could keep."""
        self.reached_end = False
        """Whether the last `read` returned all that there was."""
        self._max_in_memory = max_in_memory
        self._memory: deque[Record] = deque()
        self._file: int | None = None
        self._size = self._cursor = 0
        self._sealed = False
        self._lock = threading.RLock()  # guards all of the above, and is held for no long call
        self._file_lock: BaseFileLock | None = None

    def beside(self, suffix: str) -> Path:
        """The path of another file that belongs to the journal."""
        assert self.path is not None
        return self.path.with_suffix(suffix)

    def open(self) -> None:
        """Takes the file and its lock, and finds the cursor; once is enough.

        Raises:
            filelock.Timeout: Another process holds it; an OSError, too.
            OSError: The disk refuses.
        """
        with self._lock:
            if self._sealed:
                raise JournalClosed
            if self.path is None or self._file is not None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock = FileLock(
                f"{self.path}.lock", timeout=0, thread_local=False, fallback_to_soft=False
            )
            try:
                self._file_lock.acquire()
                self._set_apart(self.path)
                self._open_file(self.path)
            except OSError:
                self._let_go()
                raise

    def _set_apart(self, path: Path) -> None:
        """Renames a file that holds another run's records."""
        try:
            with open(path, "rb") as file:
                line = file.readline()
                # The mark of the cursor replaces the first character of a line that was sent.
                other, _ = from_line(b"{" + line[1:] if line.startswith(_SENT) else line)
        except (FileNotFoundError, ValueError):
            return
        if self.identity is not None and other.run_key != self.identity.run_key:
            apart = path.with_name(f"{path.stem}-{other.run_key[:8]}{path.suffix}")
            path.rename(apart)
            logger.warning("%s holds records of run %r: send them with `python jobs/track.py "
                           "--replay`", apart, other.run_name)  # fmt: skip

    def _open_file(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        # An earlier version rewrote the file and kept a copy while it did; a crash left both.
        partial = path.with_name(path.name + ".partial")
        recovered = partial.read_bytes() if partial.exists() else b""
        line = b""
        with open(path, "rb") as lines:
            for line in lines:
                self._size += len(line)
                if line.startswith(_SENT):
                    self._cursor = self._size
        self._write(_line_end(line) + recovered + _line_end(recovered))
        partial.unlink(missing_ok=True)

    def append(self, record: Record) -> None:
        """Adds a record by one small write, without waiting for the disk to sync; never raises."""
        with self._lock:
            self._memory.append(record)
            # What waits is older, and `flush` writes it: this call stays short.
            if len(self._memory) == 1 and self._file is not None and not self._sealed:
                self._move(1)

    def flush(self) -> None:
        """Writes what waits in memory, as far as the disk takes it; for the thread that reads."""
        while self._memory and not self._sealed:
            with self._lock:
                try:
                    self.open()
                    if self._file is not None and self._move(_AT_ONCE):
                        continue
                except (OSError, JournalClosed):  # The sender has said so.
                    pass
                # The oldest go: what a run did last says more about why it ended.
                excess = len(self._memory) - self._max_in_memory
                if excess > 0:
                    for _ in range(excess):
                        self._memory.popleft()
                    self.lost += excess
                    logger.error("tracking: the disk takes nothing, %d records are lost", excess)
                return

    def _move(self, max_records: int) -> bool:
        """Moves records from memory to the file; whether the disk took all that were tried."""
        for _ in range(min(max_records, len(self._memory))):
            assert self.identity is not None
            try:
                self._write(to_line(self.identity, self._memory[0]))
            except OSError:
                return False
            self._memory.popleft()
        return True

    def add_lines(self, data: bytes) -> None:
        """Adds those lines of a copy of the journal that are not in it; all, or none (OSError)."""
        with self._lock:
            self.open()
            known = set(self._between(0, self._size).splitlines())
            lines = [line + b"\n" for line in data.splitlines() if line not in known]
            self._write(b"".join(lines))

    def _write(self, data: bytes) -> None:
        """Writes all of it at the end or, when the disk is full, nothing (OSError)."""
        assert self._file is not None
        done = 0
        try:
            while done < len(data):  # The disk may take less than it is given.
                done += os.pwrite(self._file, data[done:], self._size + done)
        except OSError:
            os.truncate(self._file, self._size)
            raise
        self._size += done

    def read(self, max_lines: int) -> list[bytes]:
        """The next lines behind the cursor, which stays where it is."""
        with self._lock:
            if self._sealed:
                raise JournalClosed
            lines = self._lines(max_lines)
            if not lines and self._memory:
                assert self.identity is not None
                self.reached_end = len(self._memory) <= max_lines
                lines = [to_line(self.identity, r) for r in islice(self._memory, max_lines)]
            return lines

    def _lines(self, max_lines: int) -> list[bytes]:
        stop = self._cursor
        while stop < self._size:  # Twice as much each time, until a line ends.
            stop = min(self._size, stop + max(_CHUNK, stop - self._cursor))
            *lines, behind = self._between(self._cursor, stop).split(b"\n", max_lines)
            self.reached_end = stop == self._size and not behind
            if lines:
                return [line + b"\n" for line in lines]
        return []

    def _between(self, start: int, stop: int) -> bytes:
        return b"" if self._file is None else os.pread(self._file, stop - start, start)

    def advance(self, lines: Sequence[bytes]) -> None:
        """Moves the cursor behind lines that `read` returned: they were sent or set aside.

        Raises:
            JournalClosed: The journal was sealed since they were read.
        """
        with self._lock:
            if self._sealed:
                raise JournalClosed
            # With the cursor at the end of the file they were those in memory.
            if self._cursor == self._size:
                for _ in lines:
                    self._memory.popleft()
                return
            self._cursor += sum(len(line) for line in lines)
            # Without a mark, or all of it, the next process sends some lines again.
            with suppress(OSError):
                if self._file is not None:
                    os.pwrite(self._file, _SENT, self._cursor - len(lines[-1]))
                self._cut(_SLACK)

    def _cut(self, min_sent: int) -> bool:
        """Drops the lines before the cursor, if few enough follow it; whether it did.

        Usually none follow. Where records come faster than calls to the server end, the few that
        do are written over the front of the sent ones before the file is cut: a crash at any
        moment leaves them whole, behind the mark or at the front.
        """
        rest = self._size - self._cursor
        if rest and (self._cursor < min_sent or rest > min(self._cursor, _SLACK)):
            return False
        if self._cursor and self._file is not None:
            if os.pwrite(self._file, self._between(self._cursor, self._size), 0) < rest:
                return False
            os.truncate(self._file, rest)
            self._cursor, self._size = 0, rest
        return True

    def set_aside(self, lines: Sequence[bytes], reason: str) -> None:
        """Keeps lines that no retry can send, so that the rest can be sent."""
        if self._sealed:
            raise JournalClosed
        if self.path is None:
            self.lost += len(lines)
            logger.warning("MLflow refuses a record (%s): left out", reason)
            return
        refused = self.beside(".refused.jsonl")
        with open(refused, "ab") as file:
            file.writelines(lines)
        logger.warning("MLflow refuses a record (%s): kept in %s", reason, refused)

    def rest(self) -> bytes:
        """The lines of the file behind the cursor; for the thread that reads, or after `seal`."""
        return self._between(self._cursor, self._size)

    def seal(self) -> int:
        """Ends all appending and advancing, after a last try to write what is in memory.

        Returns:
            How many records are lost.
        """
        with self._lock, suppress(OSError, JournalClosed):
            self.open()
            if self._file is not None:
                self._move(len(self._memory))
        with self._lock:
            self._sealed = True
            return self.lost + sum(record.kind != "status" for record in self._memory)

    def close(self) -> None:
        """Seals, removes the file if all of it was sent, and lets go of the lock."""
        self.seal()
        with self._lock:
            if self._file is not None and self.path is not None:
                with suppress(OSError):
                    if self._cut(0) and not self._size:
                        self.path.unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._size, self._cursor = None, 0, 0
        if self._file_lock is not None and self._file_lock.is_locked:
            with suppress(OSError):
                Path(self._file_lock.lock_file).unlink()  # A process that waits for it notices.
            self._file_lock.release()


def _line_end(data: bytes) -> bytes:
    """Completes a line that a crash tore, so that the next one does not become part of it."""
    return b"\n" if data and not data.endswith(b"\n") else b""
