"""Sends what an outage left in a spill file, to the runs that its lines name."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.training.mlflow_run import MlflowRun, next_batch
from pipeline.training.redaction import redact_text
from pipeline.training.spill import SpillFile, to_line
from pipeline.training.tracking_config import TrackingConfig, server_uri


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
