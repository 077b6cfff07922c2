"""Sends a journal's lines to the runs that they name, in large calls and in order.

The sender of a running training and `jobs/track.py --replay` are both a loop over `send`: what an
outage, a crash or another node left is sent in the same way as what was logged a second ago.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.tracking.journal import Journal
from pipeline.tracking.limits import MAX_ENTITIES, MAX_TEXTS
from pipeline.tracking.mlflow_run import MlflowRun
from pipeline.tracking.records import Record, RunIdentity, from_line, to_line

_READ_AHEAD_LINES = 500


@dataclass
class ReplayCounts:
    """What became of the lines of a journal."""

    sent: int = 0
    """Records that the server has now."""
    metrics: int = 0
    """Metric values among these."""
    refused: int = 0
    """Lines that no server takes: no records, artifacts that are gone; kept in `.refused.jsonl`."""
    left: int = 0
    """Lines still in the file, because the server stopped answering."""
    reason: str = ""
    """Why lines are left."""
    refusal: bool = False
    """Whether MLflow answers and refuses the run, so that waiting does not help."""
    runs: dict[str, str] = field(default_factory=dict)
    """How to open each run, by run name."""


class Delivery:
    """A journal on its way to one server; not thread-safe."""

    def __init__(
        self, journal: Journal, uri: str, artifacts: str = "", own: MlflowRun | None = None
    ) -> None:
        """Prepares without any call; the journal is open, or to be opened before `send`.

        The complete URI and the root for artifacts are for other runs than `own`, which is that of
        this process and is marked as running again, unless this process is its guest.
        """
        self.final: Record | None = None
        """How this process ended `own`."""
        self.runs: dict[str, MlflowRun] = {}
        """The runs found or created so far, by key; cleared to look for them again."""
        self.counts = ReplayCounts()
        """What was sent and refused so far."""
        self._journal, self._own = journal, own
        self._uri, self._artifacts = uri, artifacts

    def run_of(self, identity: RunIdentity) -> MlflowRun:
        """The run on the server, found or created there."""
        key = identity.run_key
        if key not in self.runs:
            run = self._own
            if run is None or key != run.identity.run_key:
                run = MlflowRun(self._uri, identity, self._artifacts)
            run.open(resume=run is self._own)
            self.runs[key] = run
        return self.runs[key]

    def send(self) -> None:
        """Sends what the journal holds now.

        Raises:
            Exception: Whatever MLflow raises when it cannot take anything now; the cursor stays
                before what was not acknowledged.
        """
        while lines := self._journal.read(_READ_AHEAD_LINES):
            num_read = len(lines)
            identity, batch = next_batch(lines)
            lines = lines[: max(len(batch), 1)]
            if identity is None:
                self._set_aside(lines, "not a record")
            else:
                self._offer(identity, batch)
            # Last: a crash before it sends the same again, one after it sends what follows.
            self._journal.advance(lines)
            # That was the end a call ago: the few lines since then make no call of their own.
            if self.final is None and self._journal.reached_end and len(lines) == num_read:
                return

    def _offer(self, identity: RunIdentity, batch: Sequence[Record]) -> None:
        run = self.run_of(identity)
        if run is self._own and not run.is_guest:
            # How an earlier process ended this run is out of date.
            batch = [r for r in batch if r.kind != "status" or r == self.final]
        refused = run.offer(batch) if batch else []
        for record, reason in refused:
            self._set_aside([to_line(run.identity, record)], reason)
        self.counts.sent += len(batch) - len(refused)
        self.counts.metrics += sum(len(r.values) for r in batch if r.kind == "metrics")

    def _set_aside(self, lines: Sequence[bytes], reason: str) -> None:
        self._journal.set_aside(lines, reason)
        self.counts.refused += len(lines)


def next_batch(lines: Sequence[bytes]) -> tuple[RunIdentity | None, list[Record]]:
    """The run of the first line, None if that is no record, and what one call to it can take."""
    found: list[tuple[RunIdentity, Record]] = []
    for line in lines:
        try:
            identity, record = from_line(line)
        except ValueError:
            break
        if found and identity.run_key != found[0][0].run_key:
            break
        found.append((identity, record))
    if not found:
        return None, []
    return found[0][0], next(in_batches([record for _, record in found]))


def in_batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Groups consecutive records that fit into one call; a record never spans two calls."""
    batch: list[Record] = []
    counts = {"metrics": 0, "params": 0, "tags": 0}
    for record in records:
        size = len(record.values)
        alone = record.kind not in counts
        full = not alone and (
            sum(counts.values()) + size > MAX_ENTITIES
            or (record.kind != "metrics" and counts[record.kind] + size > MAX_TEXTS)
        )
        if batch and (alone or full):
            yield batch
            batch, counts = [], dict.fromkeys(counts, 0)
        if alone:
            yield [record]
        else:
            batch.append(record)
            counts[record.kind] += size
    if batch:
        yield batch
