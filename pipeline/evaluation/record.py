"""Writes an evaluation into the MLflow run that made the checkpoint."""

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoints.origin import tags_of_this_process
from pipeline.checkpoints.provenance import Provenance
from pipeline.evaluation.config import EvaluateConfig
from pipeline.storage.places import home_state_dir
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.page_records import InputDataset
from pipeline.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """Where the figures of an evaluation go."""

    tracking: TrackingConfig
    run_name: str
    journal: Path
    """Local file that keeps what the server does not take."""
    run_id: str | None = None
    """MLflow run to continue, where it is known."""
    is_own: bool = False
    """The run is the evaluation's own, not the one that made the checkpoint."""


def open_run(config: EvaluateConfig, found: Destination) -> Tracker:
    """Opens the run that the checkpoint came from, or one of the evaluation's own without any."""
    own = {"checkpoint": config.checkpoint} | tags_of_this_process() if found.is_own else None
    return Tracker.start(
        found.tracking,
        run_name=found.run_name,
        spill_path=found.journal,
        run_id=found.run_id,
        tags=own,
        is_guest=not found.is_own,
    )


def destination(config: EvaluateConfig, provenance: Provenance, folder: Path) -> Destination:
    """Decides where figures go, and says so of a checkpoint that was moved or copied.

    A checkpoint of this project knows its run's name, its storage and where it was tracked; the
    file that training keeps beside its checkpoints holds the run's id. `tracking.uri` overrides
    what the checkpoint remembers; the evaluation's folder keeps what the server does not take.
    What a checkpoint remembers counts only where its training stored it: a copy, or one from a
    colleague, writes nothing to the places of the original.
    """
    run, saved = provenance.group("run"), provenance.group("tracking")
    name, storage = str(run.get("name") or ""), str(run.get("storage") or "")
    tracking, is_original = config.tracking, _is_in_place(config.checkpoint, name, storage)
    # A checkpoint does not decide where results and credentials go if its user has.
    is_given = bool(tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if not is_given and is_original and saved.get("uri"):
        tracking = TrackingConfig(
            uri=saved["uri"], experiment=saved.get("experiment", tracking.experiment)
        )
    tracking = tracking.resolved(folder.parent)
    if name and not is_original:
        logger.info(
            "the checkpoint does not lie in %s/%s, where its training stored it: nothing is "
            "written there, and the figures go to %s",
            storage or "(unknown)",
            name,
            tracking.uri or "MLFLOW_TRACKING_URI",
        )
    # A run's id means something on the server of the training, or on one that the caller names.
    if name and (is_original or is_given):
        spill = _training_spill(name, storage) if is_original else None
        run_id = provenance.tags.get("mlflow_run_id")
        known = spill is not None and spill.with_suffix(".run.json").is_file()
        if run_id or known:
            journal = spill if spill is not None and known else folder / "tracking.jsonl"
            return Destination(tracking, name, journal, run_id)
    name = re.sub(r"[^\w.\-]+", "-", config.checkpoint).strip("-")[-80:] or "checkpoint"
    return Destination(
        replace(tracking, experiment=f"{tracking.experiment}-evaluation"),
        f"{name}-{config.variant}",
        folder / "tracking.jsonl",
        is_own=True,
    )


def record(
    tracker: Tracker, config: EvaluateConfig, report: dict[str, Any], step: int, folder: Path
) -> None:
    """Queues the figures, data and tags of report.json at the checkpoint's step, and its files.

    The files of the folder are sent as they are.
    """
    prefix = f"eval/{config.variant}"
    figures = {_shown(prefix, name): value for name, value in report["figures"].items()}
    tracker.log_metrics(figures, step)
    tracker.set_tags(
        {
            f"{prefix}/other": str(report["other"]),
            f"{prefix}/zero_shot": report.get("zero_shot", "unknown"),
            f"{prefix}/fingerprint": report.get("evaluation_fingerprint", ""),
            f"{prefix}/notes": "; ".join(report.get("notes", ())),
        }
    )
    tracker.log_inputs(
        [
            InputDataset(
                name=each["name"],
                digest=each["digest"],
                source=each["source"],
                context="evaluation",
                profile={"num_rows": each["images"]},
            )
            for each in report["data"]
        ]
    )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".csv", ".png", ".html"):
            tracker.log_artifact(path, f"evaluation/{config.variant}")


def _shown(prefix: str, name: str) -> str:
    """Names a figure so that MLflow's page makes one section of charts of it, with all parts."""
    part, _, figure = name.rpartition("/")
    return f"{prefix}_{figure}/{part}" if part else f"{prefix}/{figure}"


def _is_in_place(checkpoint: str, name: str, storage: str) -> bool:
    """Whether a checkpoint lies in the folder in which its training stored it."""
    if not name or not storage:
        return False
    folder = f"{storage.rstrip('/')}/{name}"
    above = checkpoint.rstrip("/").rpartition("/")[0]
    if "://" in folder or "://" in checkpoint:
        return above == folder
    return Path(above).resolve() == Path(folder).resolve()


def _training_spill(name: str, storage: str) -> Path | None:
    """The file in which the training of that name keeps what its tracking could not send."""
    if not storage or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", name):
        return None
    folder = Path(storage) / name if "://" not in storage else home_state_dir()
    return folder / f"tracking-{name}.jsonl"
