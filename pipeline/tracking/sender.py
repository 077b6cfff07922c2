"""The thread behind the journal: sends what was appended, and waits while MLflow is away.

It has one way of working. In an outage the cursor stands still and the journal grows; afterwards
the cursor moves on, over what this process logged and what earlier ones left, in order.
"""

import logging
import threading
import time
from dataclasses import replace
from typing import Literal

from pipeline import monitoring
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import Journal, JournalClosed
from pipeline.tracking.journal_copy import JournalCopy
from pipeline.tracking.mlflow_run import MlflowRun
from pipeline.tracking.records import Record, RunIdentity, load_identity, now_ms, save_identity
from pipeline.tracking.redaction import reason_of
from pipeline.tracking.refusals import MlflowRefused

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING", "UNCHANGED"]

_FLUSH_S = 1.0
_MAX_BACKOFF_S = 8.0
_CLOSING_ATTEMPTS = 2
_COPY_EVERY_S = 30.0  # during an outage


class Sender:
    """Sends one run's journal from a thread of its own."""

    def __init__(self, run: MlflowRun, journal: Journal, copy: JournalCopy | None = None) -> None:
        """Prepares; from `start` on the run belongs to the thread.

        Neither it nor the journal is open yet. Copies are for a node that may vanish.
        """
        self._run = run
        self._journal = journal
        self._copy = copy
        self._asked = run.identity
        self._delivery = Delivery(journal, run.uri, run.artifacts, own=run)
        self._closing = threading.Event()
        self.opened = threading.Event()
        self._failures, self._refusal = 0, ""
        self._failing_since = 0.0
        self._next_try = self._next_copy = 0.0
        self._thread = threading.Thread(target=self._loop, name="mlflow-sender", daemon=True)

    def start(self) -> None:
        """Opens the journal and starts the thread."""
        if self._journal.path is not None:
            self._take_over(load_identity(self._journal.beside(".run.json")))
        # A copy may be slow to read, and may name another run: the thread opens the journal
        # after it, and until then records wait in memory.
        if self._copy is None:
            self._open_journal()
        self._thread.start()

    def put(self, record: Record) -> None:
        """Appends a record to the journal; never waits for MLflow, never raises."""
        if self._delivery.final is not None:
            logger.warning("%s logged after close: left out", record.kind)
        else:
            self._journal.append(record)

    def stop(self, status: Status, timeout_s: float) -> None:
        """Sends what is left, for `timeout_s` at most; the rest stays in the journal."""
        if self._delivery.final is not None:
            return
        if self._run.is_guest:
            status = "UNCHANGED"
        final = Record(kind="status", time_ms=now_ms(), values={"status": status})
        # The thread must know its own end when it reads it, and must not end before it is there.
        self._delivery.final = final
        self._journal.append(final)
        self._closing.set()
        self._thread.join(timeout_s)
        # A thread stuck in a call for longer must not hold the process, nor touch the file later.
        num_lost = self._journal.seal()
        rest = self._journal.rest()
        copied = self._copy.end(self._run.identity, rest) if self._copy is not None else ""
        self._journal.close()
        if rest:
            path = self._journal.path
            logger.warning(
                "MLflow took not everything: %d records wait in %s; they are sent when the run is "
                "resumed, or by `python jobs/track.py --replay %s`%s",
                rest.count(b"\n"), f"{path} and {copied}" if copied else path, copied or path,
                f"; first: {self._refusal}" if self._refusal else "",
            )  # fmt: skip
        if num_lost:
            logger.error("MLflow took not everything: %d records are lost", num_lost)
        elif not rest and status == "FAILED":
            logger.info("what the run logged until it failed is in MLflow: %s", self._run.ui_hint())
        elif not rest:
            logger.info("MLflow has everything: %s", self._run.ui_hint())

    def _loop(self) -> None:
        if self._copy is not None:
            self._open_journal()
        while True:
            closing = self._closing.wait(_FLUSH_S)
            away_s = time.monotonic() - self._failing_since if self._failures else 0.0
            monitoring.MLFLOW_AWAY.set(away_s, run=self._asked.run_name)
            # First the disk: what it has is safe whatever happens to the process in a call.
            self._journal.flush()
            is_outage = not closing and time.monotonic() < self._next_try
            try:
                if not is_outage:
                    self._send_all()
            except JournalClosed:
                return
            except Exception as error:
                self._fail(error)
            if closing:
                # Once more, since the first failure may be a connection that an outage left.
                if self._failures == 0 or self._failures >= _CLOSING_ATTEMPTS:
                    return
            # Last: nobody waits for it, and what was sent just now need not be copied.
            elif self._copy is None:
                continue
            elif not self._copy.is_known:
                # The storage did not answer at the start; without a look nothing may be replaced.
                if time.monotonic() >= self._next_copy:
                    self._next_copy = time.monotonic() + _COPY_EVERY_S
                    self._open_journal()
            elif not self._failures:
                self._copy.drop(self._run.identity)
            elif time.monotonic() >= self._next_copy:
                rest = self._journal.rest()
                if rest and self._copy.begin(self._run.identity, rest):
                    self._next_copy = time.monotonic() + _COPY_EVERY_S

    def _send_all(self) -> None:
        # The run first: its id is waited for, and what an outage left may take minutes to send.
        self._delivery.run_of(self._run.identity)
        if self._failures or not self.opened.is_set():
            self._remember()
            self.opened.set()
        self._delivery.send()
        if self._failures:
            logger.warning("MLflow answers again; everything kept was sent")
        self._failures, self._refusal = 0, ""

    def _fail(self, error: Exception) -> None:
        self._delivery.runs.clear()  # The server may come back with another database.
        kept = self._journal.path or "memory"
        refusal = str(error) if isinstance(error, MlflowRefused) else ""
        if refusal and refusal != self._refusal:
            logger.warning("MLflow refuses this run; training continues, records kept in %s: %s",
                           kept, refusal)  # fmt: skip
        elif self._failures == 0:
            logger.warning("MLflow does not answer; training continues, records kept in %s (%s)",
                           kept, reason_of(error))  # fmt: skip
        self._refusal = refusal
        self._next_try = time.monotonic() + min(2.0**self._failures, _MAX_BACKOFF_S)
        self._failing_since = self._failing_since if self._failures else time.monotonic()
        self._failures += 1

    def _open_journal(self) -> None:
        """Opens the journal, behind what a process on another node left in the storage."""
        lines = b""
        if self._copy is not None:
            copied, lines = self._copy.read()
            if not self.opened.is_set():  # A run that is open stays the one that is written to.
                self._take_over(copied)
        try:
            self._journal.open()
            if lines:
                self._journal.add_lines(lines)
        except (OSError, JournalClosed) as error:
            logger.warning("%s cannot be used: %s", self._journal.path, error)
            if self._copy is not None and lines:
                self._copy.is_known = False  # It stays the only place that has them.
        self._remember()
        self._journal.flush()

    def _take_over(self, left: RunIdentity | None) -> None:
        """Continues the run that an earlier process left, if it is the one that was asked for."""
        mine = self._asked
        same_name = left and (left.experiment, left.run_name) == (mine.experiment, mine.run_name)
        if left and same_name and mine.run_id in ("", left.run_id):
            run_id = mine.run_id or left.run_id
            self._run.identity = replace(mine, run_key=left.run_key, run_id=run_id)
            self._journal.identity = self._run.identity

    def _remember(self) -> None:
        """Writes down which run this is, for the process that resumes it."""
        self._journal.identity = self._run.identity
        try:
            if self._journal.path is not None:
                save_identity(self._journal.beside(".run.json"), self._run.identity)
        except OSError as error:  # The disk is full: what is logged can be sent all the same.
            logger.warning("%s: the run's id is not kept: %s", self._journal.path, error)
        if self._copy is not None:
            self._copy.begin(self._run.identity, None)
