"""The thread between the queue and MLflow: sends, spills during an outage, catches up after it.

Order is kept all the way: what is in flight is older than the spill file, which is older than the
queue. During an outage all three end up in the spill file, so that a killed process loses at
most its last second.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.tracking.mlflow_run import MlflowRun, in_batches, next_batch
from pipeline.tracking.redaction import redact_text
from pipeline.tracking.spill import (
    Record,
    SpillFile,
    identity_bytes,
    load_identity,
    now_ms,
    save_identity,
    to_line,
)
from pipeline.tracking.spill_copy import SpillCopy

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_FLUSH_S = 1.0
_MAX_BACKOFF_S = 8.0
_WAKE_AT = 500  # queued records that do not wait for the next flush
_CLOSING_ATTEMPTS = 2
_COPY_EVERY_S = 30.0  # during an outage
_LAST_COPY_S = 10.0


class Sender:
    """Sends the records of one run from a thread of its own."""

    def __init__(
        self,
        run: MlflowRun,
        queue_size: int,
        spill_path: Path | None,
        copy: SpillCopy | None = None,
    ):
        """Prepares; `start` starts.

        Args:
            run: The run, not yet opened; belongs to the thread from `start` on.
            queue_size: Records in memory; enforced between two calls to the server.
            spill_path: Absolute path for what the server does not take; None: memory only.
            copy: Where copies of the spill file go, for a node that may vanish.
        """
        self._run = run
        self._queue_size = queue_size
        self._spill = SpillFile(spill_path) if spill_path else None
        self._copy = copy if spill_path else None
        self._next_copy = 0.0
        self._queue: deque[Record] = deque()
        self._in_flight: list[Record] = []
        self._lock = threading.Lock()  # guards _in_flight, the spill file and _abandoned
        self._wake = threading.Event()
        self.opened = threading.Event()
        self._attached = False
        self._abandoned = False
        self._final: Status | None = None
        self._ended = False
        self._failures = 0
        self._next_try = 0.0
        self._lost = 0
        self._thread = threading.Thread(target=self._loop, name="mlflow-sender", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queues a record; never waits, never raises."""
        if self._final is not None:
            logger.warning("%s logged after close: left out", record.kind)
            return
        self._queue.append(record)
        if len(self._queue) >= min(_WAKE_AT, self._queue_size):
            self._wake.set()

    def stop(self, status: Status, timeout_s: float) -> None:
        """Sends what is queued, for `timeout_s` at most; the rest goes to the spill file."""
        if self._final is not None:
            return
        self._final = status
        self._wake.set()
        self._thread.join(timeout_s)
        # A thread stuck in a call for longer must not hold the process, nor touch the file later.
        got_lock = self._lock.acquire(timeout=2.0)
        try:
            self._abandoned = True
            self._report_end(status)
        finally:
            if got_lock:
                self._lock.release()

    def _report_end(self, status: Status) -> None:
        if not self._ended and self._spill is not None:
            self._queue.append(Record(kind="status", time_ms=now_ms(), values={"status": status}))
            self._save()
        left = len(self._in_flight) + len(self._queue)
        rest = b""
        if self._spill is not None:
            try:
                rest = self._spill.rest()
                self._spill.close()
            except OSError as error:
                logger.error("%s: %s", self._spill.path, error)
        spilled = rest.count(b"\n")
        copied = self._end_copy(rest)
        if spilled and self._spill is not None:
            logger.warning(
                "MLflow took not everything: %d records wait in %s; they are sent when the run is "
                "resumed, or by `python jobs/track.py --replay %s`",
                spilled,
                f"{self._spill.path} and {copied}" if copied else self._spill.path,
                copied or self._spill.path,
            )
        if left or self._lost:
            logger.error("MLflow took not everything: %d records are lost", left + self._lost)
        elif not spilled:
            logger.info("MLflow has everything: %s", self._run.ui_hint())

    def _end_copy(self, rest: bytes) -> str:
        """Brings the copy up to date; its address if it holds the lines that are left."""
        copy = self._copy
        if copy is None or not (rest or copy.is_stored):
            return ""
        files = {copy.identity: identity_bytes(self._run.identity), copy.lines: rest}
        if copy.end(files, _LAST_COPY_S):
            return copy.uri
        logger.warning("%s: not up to date, the storage does not answer", copy.uri)
        return ""

    def _copy_out(self) -> None:
        """Starts to copy what is left, during an outage, or to delete the copy after it."""
        copy = self._copy
        if copy is None or self._spill is None:
            return
        try:
            with self._lock:
                if self._abandoned:
                    return
                rest = self._spill.rest()
        except OSError:  # Reported where it is written.
            return
        if not rest and not copy.is_stored:
            return
        if copy.begin({copy.identity: identity_bytes(self._run.identity), copy.lines: rest}):
            self._next_copy = time.monotonic() + _COPY_EVERY_S

    def _loop(self) -> None:
        self._identify()
        while True:
            self._wake.wait(_FLUSH_S)
            self._wake.clear()
            closing = self._final is not None
            if time.monotonic() < self._next_try and not closing:
                with self._lock:
                    self._save()
                if time.monotonic() >= self._next_copy:
                    self._copy_out()
                continue
            try:
                self._send_all()
                if closing:
                    self._run.end(str(self._final), now_ms())
                    self._ended = True
                elif self._copy is not None and self._copy.is_stored:
                    self._copy_out()
            except _AbandonedError:
                return
            except Exception as error:
                self._fail(error)
            if self._ended or (closing and self._failures >= _CLOSING_ATTEMPTS):
                return
            if closing:
                self._wake.set()

    def _send_all(self) -> None:
        if not self._attached:
            self._run.open(resume=True)
            self._attached = True
            self._remember()
            self.opened.set()
        while True:
            with self._lock:
                if self._abandoned:
                    raise _AbandonedError
                batch, lines = self._next()
            if batch:
                self._offer(batch)
            with self._lock:
                if self._abandoned:
                    raise _AbandonedError
                if lines and self._spill is not None:
                    self._spill.advance(lines)
                    if not self._spill.pending:
                        self._spill.compact()
                elif batch:
                    del self._in_flight[: len(batch)]
                else:
                    break
        if self._failures:
            logger.warning("MLflow answers again; everything kept was sent")
        self._failures = 0

    def _next(self) -> tuple[list[Record], list[bytes]]:
        """The oldest records that fit into one call, and their lines if they were spilled."""
        excess = len(self._queue) - self._queue_size
        if excess > 0:
            self._save(excess)
        if self._in_flight:
            return next(in_batches(self._in_flight)), []
        if self._spill is not None and self._spill.pending:
            identity, batch, lines = next_batch(self._spill)
            if identity is None:
                self._spill.set_aside(lines, "not a record")
            # How an earlier process ended is out of date.
            return [record for record in batch if record.kind != "status"], lines
        while self._queue and len(self._in_flight) < _WAKE_AT:
            self._in_flight.append(self._queue.popleft())
        return (next(in_batches(self._in_flight)) if self._in_flight else []), []

    def _offer(self, batch: Sequence[Record]) -> None:
        for record, reason in self._run.offer(batch):
            if self._spill is not None:
                self._spill.set_aside([to_line(self._run.identity, record)], reason)
            else:
                self._lost += 1
                logger.warning("MLflow refuses a record (%s): left out", reason)

    def _fail(self, error: Exception) -> None:
        self._attached = False  # the server may come back with another database
        if self._failures == 0:
            reason = redact_text(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            kept = self._spill.path if self._spill else f"memory (up to {self._queue_size})"
            logger.warning("MLflow does not answer; training goes on, records kept in %s (%s)",
                           kept, reason)  # fmt: skip
        self._next_try = time.monotonic() + min(2.0**self._failures, _MAX_BACKOFF_S)
        self._failures += 1
        with self._lock:
            if not self._abandoned:
                self._save()

    def _save(self, max_records: int | None = None) -> None:
        """Moves the oldest records in memory, all unless told otherwise, to the spill file.

        Where that fails they stay, up to the queue's size. The caller holds the lock.
        """
        num_queued = len(self._queue) if max_records is None else max_records
        records = self._in_flight + [self._queue.popleft() for _ in range(num_queued)]
        if not records:
            return
        try:
            if self._spill is None:
                raise FileNotFoundError("no spill file is configured")
            self._spill.append(self._run.identity, records)
            self._in_flight = []
        except OSError as error:
            excess = max(0, len(records) - self._queue_size)
            self._in_flight = records[excess:]
            self._lost += excess
            if excess:
                logger.error("tracking: the oldest %d records are lost: %s", excess, error)

    def _identify(self) -> None:
        """Takes over the identity that an earlier process of this run left beside the spill."""
        if self._spill is None:
            return
        self._take_copy()
        mine = self._run.identity
        left = load_identity(self._identity_path)
        same_name = left and (left.experiment, left.run_name) == (mine.experiment, mine.run_name)
        if left and same_name and mine.run_id in ("", left.run_id):
            run_id = mine.run_id or left.run_id
            self._run.identity = replace(mine, run_key=left.run_key, run_id=run_id)
        try:
            self._keep_foreign_spill()
            self._remember()
        except OSError as error:
            logger.warning("%s cannot be used: %s", self._spill.path, error)

    def _take_copy(self) -> None:
        """Goes on with what a process on another node left in the run's storage."""
        if self._copy is None or self._spill is None:
            return
        try:
            identity, lines = self._copy.read()
            with self._lock:
                if self._abandoned:
                    return
                if identity is not None:
                    save_identity(self._identity_path, identity)
                if lines:
                    self._spill.add_lines(lines)
        except Exception as error:  # The run does not depend on it.
            logger.warning("%s cannot be read: %s", self._copy.uri, error)

    def _keep_foreign_spill(self) -> None:
        """Renames a spill file that holds another run's records."""
        assert self._spill is not None
        if not self._spill.pending:
            return
        identity, _, _ = next_batch(self._spill)
        if identity is None or identity.run_key == self._run.identity.run_key:
            return
        path = self._spill.path
        other = path.with_name(f"{path.stem}-{identity.run_key[:8]}{path.suffix}")
        self._spill.close()
        path.rename(other)
        logger.warning("%s holds records of run %r: send them with `python jobs/track.py --replay`",
                       other, identity.run_name)  # fmt: skip

    @property
    def _identity_path(self) -> Path:
        assert self._spill is not None
        return self._spill.path.with_suffix(".run.json")

    def _remember(self) -> None:
        """Writes down which run this is, for the process that resumes it."""
        if self._spill is not None:
            save_identity(self._identity_path, self._run.identity)
        if self._copy is not None:
            self._copy.begin({self._copy.identity: identity_bytes(self._run.identity)})


class _AbandonedError(Exception):
    """`close` has given up waiting: the sender must not touch anything any more."""
