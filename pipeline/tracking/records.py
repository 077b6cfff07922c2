"""Tracking records, and the JSON line that each of them is in a journal.

A line carries the run's identity besides the record, so that a journal can be sent to any server,
also to one that has never heard of the run. A record is safe to send twice: MLflow keys a metric
by run, name, time, step and value, so a repeated one is the same row.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Kind = Literal[
    "metrics", "params", "tags", "artifact", "text", "status", "inputs", "picture", "table", "model"
]


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The names that find a run again, on any server."""

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
    """Metrics, parameters or tags; `{"status": ...}` for the end of a run; what a dataset is."""
    path: str = ""
    """Artifacts: absolute path of the file or folder on this machine."""
    artifact_path: str = ""
    """Artifacts: folder in the run; texts, tables and images: file in the run."""
    text: str = ""
    """Content of a text or table; of an image in base64; what a model is, in JSON."""


def now_ms() -> int:
    """Unix time in ms, as MLflow counts."""
    return time.time_ns() // 1_000_000


def identity_bytes(identity: RunIdentity) -> bytes:
    """The content of an identity's file."""
    return json.dumps(vars(identity), indent=2).encode() + b"\n"


def identity_from(data: bytes) -> RunIdentity | None:
    """Reads what `identity_bytes` wrote; None if it is something else."""
    try:
        return RunIdentity(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None


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
    except OSError:
        return None


def to_line(identity: RunIdentity, record: Record) -> bytes:
    """Writes one record as a JSON line; empty fields are left out."""
    fields = {k: v for k, v in (vars(identity) | vars(record)).items() if v not in ("", {})}
    # A lone surrogate, as in the name of a file that is not UTF-8, must not stop a record.
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace") + b"\n"


def from_line(line: bytes) -> tuple[RunIdentity, Record]:
    """Reads one line.

    Raises:
        ValueError: The line is no record (torn by a crash, or written by something else).
    """
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError(f"no tracking record: {line[:80]!r}") from None
    if not isinstance(fields, dict) or fields.get("kind") not in get_args(Kind):
        raise ValueError(f"no tracking record: {line[:80]!r}")
    names = RunIdentity.__dataclass_fields__
    try:
        identity = RunIdentity(**{k: v for k, v in fields.items() if k in names})
        record = Record(**{k: v for k, v in fields.items() if k not in names})
    except TypeError as error:
        raise ValueError(f"no tracking record: {error}") from error
    return identity, record
