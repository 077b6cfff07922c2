"""Sends what an outage left in a spill file, to the runs that its lines name."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.tracking.config import TrackingConfig, server_uri
from pipeline.tracking.mlflow_run import MlflowRun, next_batch
from pipeline.tracking.redaction import redact_text
from pipeline.tracking.spill import SpillFile, to_line


@dataclass
class ReplayCounts:
    """What became of the lines of a spill file."""

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
    runs: dict[str, str] = field(default_factory=dict)
    """How to open each run, by run name."""


_PATTERN = "tracking*.jsonl"
_REFUSED = ".refused.jsonl"


def replay_all(place: str, config: TrackingConfig) -> Iterator[tuple[str, ReplayCounts]]:
    """Sends all spill files of a place, one after the other; see `replay`.

    Args:
        place: A spill file, or a folder with some at any depth, such as a run's storage; local or
            `s3://`. What a stored file still holds afterwards is written back.
        config: Where to.

    Yields:
        Where the file is, and what became of it.

    Raises:
        UserError: There is none, one is in use by a running training, or there is no tracking URI.
    """
    if "://" not in place:
        path = Path(place)
        found = [path] if path.is_file() else sorted(path.rglob(_PATTERN))
        found = [p for p in found if p == path or not p.name.endswith(_REFUSED)]
        if not found:
            raise _nothing(place)
        for path in found:
            yield str(path), replay(path, config)
        return
    root, _, name = place.rpartition("/")
    if not name.endswith(".jsonl"):
        root, name = place, ""
    storage = open_storage(root)
    paths = [name] if name else [entry.path for entry in storage.list() if _is_spill(entry.path)]
    paths = [path for path in paths if storage.exists(path)]
    if not paths:
        raise _nothing(place)
    for stored in paths:
        yield f"{storage.uri}/{stored}", _replay_stored(storage, stored, config)


def _is_spill(path: str) -> bool:
    return PurePosixPath(path).match(_PATTERN) and not path.endswith(_REFUSED)


def _nothing(place: str) -> UserError:
    return UserError(
        f"replay={place}: must be a spill file, or a folder that holds some: give what training "
        "printed, or the run's storage; a file that was sent completely is removed"
    )


def _replay_stored(storage: Storage, path: str, config: TrackingConfig) -> ReplayCounts:
    with tempfile.TemporaryDirectory(prefix="lseg-replay-") as folder:
        local = Path(folder) / PurePosixPath(path).name
        before = storage.read(path)
        local.write_bytes(before)
        counts = replay(local, config)
        for ending in ("", _REFUSED):
            kept = local.with_suffix(ending) if ending else local
            if kept.exists():
                target = str(PurePosixPath(path).with_name(kept.name))
                earlier = storage.read(target) if ending and storage.exists(target) else b""
                storage.write(target, earlier + kept.read_bytes())
        # A training that still runs may have written more in the meantime.
        with suppress(FileNotFoundError):  # Or has sent it all by itself.
            if not local.exists() and storage.read(path) == before:
                storage.delete(path)
    return counts


def replay(spill_path: Path, config: TrackingConfig) -> ReplayCounts:
    """Sends a spill file to MLflow, in order and with the original times.

    What was sent leaves the file; an empty file is removed. Sending twice does no harm.

    Args:
        spill_path: The file that training named.
        config: Where to; the experiment is the one that each line names.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is in use by a running training, or there is no tracking URI.
    """
    if not spill_path.is_file():
        raise FileNotFoundError(f"{spill_path}: no such spill file")
    uri = server_uri(config)
    spill = SpillFile(spill_path)
    counts = ReplayCounts()
    runs: dict[str, MlflowRun] = {}
    try:
        while spill.pending:
            identity, batch, lines = next_batch(spill)
            if identity is None:
                spill.set_aside(lines, "not a record")
                counts.refused += len(lines)
            else:
                run = runs.get(identity.run_key)
                if run is None:
                    run = MlflowRun(uri, identity, artifacts=config.artifacts)
                    run.open(resume=False)
                    runs[identity.run_key] = run
                    counts.runs[identity.run_name] = run.ui_hint()
                refused = run.offer(batch)
                for record, why in refused:
                    spill.set_aside([to_line(run.identity, record)], why)
                counts.refused += len(refused)
                counts.sent += len(batch) - len(refused)
                counts.metrics += sum(len(r.values) for r in batch if r.kind == "metrics")
            spill.advance(lines)
    except BlockingIOError as error:
        raise UserError(
            f"replay={spill_path}: must not be in use: its training still runs and sends it by "
            "itself; wait for its end"
        ) from error
    except Exception as error:
        counts.reason = redact_text(f"{type(error).__name__}: {error}".splitlines()[0])
        counts.left = spill.count()
    spill.close()
    return counts
