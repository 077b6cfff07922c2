"""Writes an evaluation into the MLflow run that made the checkpoint."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.checkpoints.provenance import Provenance
from pipeline.evaluation.config import EvaluateConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker


def open_run(config: EvaluateConfig, provenance: Provenance, folder: Path) -> Tracker:
    """Opens the run that the checkpoint came from, or one of the evaluation's own without any.

    A checkpoint of this project knows its run's name, its storage and where it was tracked; the
    file that training keeps beside its checkpoints holds the run's id. `tracking.uri` overrides
    what the checkpoint remembers; the evaluation's folder keeps what the server does not take.
    """
    run, saved = provenance.group("run"), provenance.group("tracking")
    tracking = config.tracking
    # A checkpoint does not decide where results and credentials go if its user has.
    if not tracking.uri and not os.environ.get("MLFLOW_TRACKING_URI") and saved.get("uri"):
        tracking = TrackingConfig(
            uri=saved["uri"], experiment=saved.get("experiment", tracking.experiment)
        )
    tracking = tracking.resolved(folder.parent)
    if run.get("name"):
        spill = _training_spill(str(run["name"]), str(run.get("storage", "")))
        run_id = provenance.tags.get("mlflow_run_id")
        known = spill is not None and spill.with_suffix(".run.json").is_file()
        if run_id or known:
            path = spill if known else folder / "tracking.jsonl"
            return Tracker.start(tracking, run_name=run["name"], spill_path=path, run_id=run_id)
    name = re.sub(r"[^\w.\-]+", "-", config.checkpoint).strip("-")[-80:] or "checkpoint"
    return Tracker.start(
        replace(tracking, experiment=f"{tracking.experiment}-evaluation"),
        run_name=f"{name}-{config.variant}",
        spill_path=folder / "tracking.jsonl",
        tags={"checkpoint": config.checkpoint},
    )


def record(
    tracker: Tracker, config: EvaluateConfig, report: dict[str, Any], step: int, folder: Path
) -> None:
    """Queues the figures and tags of report.json at the checkpoint's step, and the report's files.

    The files of the folder are sent as they are.
    """
    prefix = f"eval/{config.variant}"
    figures = {f"{prefix}/{name}": value for name, value in report["figures"].items()}
    tracker.log_metrics(figures, step)
    tracker.set_tags(
        {
            f"{prefix}/other": str(report["other"]),
            f"{prefix}/zero_shot": report.get("zero_shot", "unknown"),
            f"{prefix}/fingerprint": report.get("evaluation_fingerprint", ""),
            f"{prefix}/notes": "; ".join(report.get("notes", ())),
        }
    )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".csv", ".png", ".html"):
            tracker.log_artifact(path, f"evaluation/{config.variant}")


def _training_spill(name: str, storage: str) -> Path | None:
    """The file in which the training of that name keeps what its tracking could not send."""
    if not storage or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", name):
        return None
    folder = Path(storage) / name if "://" not in storage else Path.home() / ".lseg"
    return folder / f"tracking-{name}.jsonl"
