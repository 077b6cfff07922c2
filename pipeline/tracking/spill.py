"""The spill file: tracking records that no MLflow server has taken yet, one JSON line each.

A line carries the run's identity besides the record, so that a file can be sent to any server,
also one that has never heard of the run. Records are safe to send twice: MLflow keys a metric by
run, name, time, step and value, so a repeated one is the same row.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

Kind = Literal["metrics", "params", "tags", "artifact", "text", "status"]
KINDS: tuple[str, ...] = ("metrics", "params", "tags", "artifact", "text", "status")


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What finds a run again, on any server."""

    experiment: str
    """Experiment name."""
    run_name: str
    """Name shown by the MLflow UI; several runs may share it."""
    run_key: str
    """Made by the client before any server is asked; a tag of the run."""
    run_id: str = ""
    """MLflow's own id; empty while no server has answered."""
    parent_run_id: str = ""
    """Run that this one is nested in; empty for none."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing to send."""

    kind: Kind
    time_ms: int
    """Unix time of the call in ms."""
    step: int = 0
    """Optimiser steps done; metrics only."""
    values: dict[str, float] | dict[str, str] = field(default_factory=dict)
    """Metrics, parameters or tags; `{"status": ...}` for the end of a run."""
    path: str = ""
    """Artifacts: absolute path of the file or folder on this machine."""
    artifact_path: str = ""
    """Artifacts: folder in the run; texts: file in the run."""
    text: str = ""
    """Content of a text artifact."""


def now_ms() -> int:
    """Unix time in ms, as MLflow counts."""
    return time.time_ns() // 1_000_000


def save_identity(path: Path, identity: RunIdentity) -> None:
    """Writes down, atomically, which run a folder belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(identity_bytes(identity))
    partial.replace(path)


def load_identity(path: Path) -> RunIdentity | None:
    """Reads what `save_identity` wrote; None if there is none."""
    try:
        return identity_from(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None


def identity_bytes(identity: RunIdentity) -> bytes:
    """The content of an identity's file."""
    return json.dumps(asdict(identity), indent=2).encode() + b"\n"


def identity_from(data: bytes) -> RunIdentity:
    """Reads what `identity_bytes` wrote; ValueError or TypeError if it is something else."""
    return RunIdentity(**json.loads(data))


def to_line(identity: RunIdentity, record: Record) -> bytes:
    """Writes one record as a JSON line; empty fields are left out."""
    fields = {k: v for k, v in (asdict(identity) | asdict(record)).items() if v not in ("", {})}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> tuple[RunIdentity, Record]:
    """Reads one line.

    Raises:
        ValueError: The line is no record (torn by a crash, or written by something else).
    """
    fields = json.loads(line)
    if not isinstance(fields, dict) or fields.get("kind") not in KINDS:
        raise ValueError(f"no tracking record: {line[:80]!r}")
    names = RunIdentity.__dataclass_fields__
    try:
        identity = RunIdentity(**{k: v for k, v in fields.items() if k in names})
        record = Record(**{k: v for k, v in fields.items() if k not in names})
    except TypeError as error:
        raise ValueError(f"no tracking record: {error}") from error
    return identity, record


class SpillFile:
    """Append at the end, read from the front; one process at a time.

    What was read stays in the file until `compact`: a crash between sending and compacting means
    that records are sent twice, never that they are lost.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: FileIO | None = None
        self._offset = 0

    def _open(self) -> FileIO:
        """Opens the file and takes its lock.

        Raises:
            BlockingIOError: Another process holds it.
            OSError: The disk says no.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_last_line(file)
                self._recover(file)
            except OSError:
                file.close()
                raise
            self._file = file
        return self._file

    @property
    def _partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    def _recover(self, file: FileIO) -> None:
        """Puts back what a crash inside `compact` left in the copy; lines may now come twice."""
        if self._partial.exists():
            _write_all(file, self._partial.read_bytes())
            _end_last_line(file)
            self._partial.unlink()

    def exists(self) -> bool:
        """Tells whether there is a file, without creating one."""
        return self._file is not None or self.path.exists() or self._partial.exists()

    @property
    def pending(self) -> bool:
        """Whether lines are left that `advance` has not passed."""
        return self.exists() and os.fstat(self._open().fileno()).st_size > self._offset

    def append(self, identity: RunIdentity, records: Sequence[Record]) -> None:
        """Adds records; all of them or, when the disk is full, none (OSError)."""
        self._add([to_line(identity, record) for record in records])

    def add_lines(self, data: bytes) -> None:
        """Adds those lines of a copy of the file that are not in it; all or none, as `append`."""
        file = self._open()
        file.seek(0)
        known = set(file.readall().splitlines())
        self._add([line + b"\n" for line in data.splitlines() if line not in known])

    def _add(self, lines: Sequence[bytes]) -> None:
        file = self._open()
        size = os.fstat(file.fileno()).st_size
        try:
            _write_all(file, b"".join(lines))
        except OSError:
            file.truncate(size)
            raise

    def rest(self) -> bytes:
        """The lines that `advance` has not passed; reads the whole file."""
        if not self.exists():
            return b""
        file = self._open()
        file.seek(self._offset)
        return file.readall()

    def count(self) -> int:
        """Counts the lines that `advance` has not passed; reads the whole file."""
        return self.rest().count(b"\n")

    def read_lines(self, max_lines: int) -> list[bytes]:
        """Returns the next lines after the last `advance`, without passing them."""
        file = self._open()
        file.seek(self._offset)
        # A second, buffered view of the descriptor; closing it must not close (and unlock) ours.
        with open(file.fileno(), "rb", closefd=False) as reader:
            lines = [reader.readline() for _ in range(max_lines)]
        return [line for line in lines if line]

    def advance(self, lines: Sequence[bytes]) -> None:
        """Passes the first lines that `read_lines` returned: they were sent or set aside."""
        self._offset += sum(len(line) for line in lines)

    @property
    def refused_path(self) -> Path:
        """File for records that the server refuses for good."""
        return self.path.with_suffix(".refused.jsonl")

    def set_aside(self, lines: Sequence[bytes], reason: str) -> None:
        """Keeps lines that no retry can send, so that the rest can go on."""
        with open(self.refused_path, "ab") as file:
            file.writelines(lines)
        logger.warning("MLflow refuses a record (%s): kept in %s", reason, self.refused_path)

    def compact(self) -> None:
        """Removes the passed lines from the file. Rewrites what is left, so call it rarely."""
        if self._offset == 0:
            return
        file = self._open()
        file.seek(self._offset)
        rest = file.readall()
        if rest:
            # In place, since a replaced file would leave the lock on the old one; the copy
            # survives a crash between the two writes.
            self._partial.write_bytes(rest)
            file.truncate(0)
            _write_all(file, rest)
            self._partial.unlink()
        else:
            file.truncate(0)
        self._offset = 0

    def close(self) -> None:
        """Compacts, removes an empty file, and lets go of the lock."""
        if self._file is None:
            return
        self.compact()
        if os.fstat(self._file.fileno()).st_size == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None


def _write_all(file: FileIO, data: bytes) -> None:
    """Writes to an unbuffered file, which may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _end_last_line(file: FileIO) -> None:
    """Ends a line that a crash tore, so that the next record does not become part of it."""
    size = os.fstat(file.fileno()).st_size
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
