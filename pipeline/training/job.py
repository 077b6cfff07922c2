"""What the driver hands to the workers of a run, and the MLflow run that both write to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.places import home_state_dir
from pipeline.tracking.experiment import NOTE_TAG
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.plan import RunPlan
from pipeline.training.published import Published


@dataclass(frozen=True)
class Lineage:
    """The larger undertaking that a run is part of, such as a sweep."""

    parent_run_id: str = ""
    """MLflow run to nest it in."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the run besides those of provenance."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to each worker."""

    plan: RunPlan
    stop: Any = None
    """The actor that knows whether the run was asked to stop; see `pipeline.training.stopping`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Provenance: git commit, fingerprints, versions, Ray job."""
    lineage: Lineage = field(default_factory=Lineage)
    """The larger undertaking that the run is part of, such as a sweep."""

    def run_tags(self, resumes: bool = False) -> dict[str, str]:
        """Tags of the MLflow run; those that resume leave the description that a person may own."""
        tags = self.tags | self.lineage.tags
        return {key: value for key, value in tags.items() if not resumes or key != NOTE_TAG}


@dataclass(frozen=True)
class EarlyEnd:
    """Why training ended early without an error; identical on every worker."""

    stopped: str = ""
    """Why the run was stopped from outside, after a checkpoint."""
    failed: str = ""
    """Why it cannot continue: a diagnosis for the user."""
    defect: str = ""
    """Why it cannot continue: the traceback of a defect, which another attempt would meet again."""
    leaving: str = ""
    """Which nodes are about to leave: all workers start anew without them, after a checkpoint."""

    @property
    def why(self) -> str:
        """The reason why the run ended, whichever it is; empty if it goes on."""
        return self.failed or self.defect or self.stopped


def open_tracker(
    config: TrainMixConfig, tags: dict[str, str] | None = None, parent_run_id: str = ""
) -> Tracker:
    """Opens the MLflow run of a training run, which is found again by name and storage.

    The configuration has absolute paths, the tags are the run's provenance, and a new MLflow run is
    nested in the one of `parent_run_id`.
    """
    storage = config.run.storage
    # Beside the checkpoints; for a run in S3, in a folder of this machine, with copies there.
    folder = home_state_dir() if "://" in storage else Path(storage) / config.run.name
    return Tracker.start(
        config.tracking,
        run_name=config.run.name,
        spill_path=folder / f"tracking-{config.run.name}.jsonl",
        tags=tags,
        params=plain(config),
        parent_run_id=parent_run_id,
        copy_to=f"{storage}/{config.run.name}" if "://" in storage else "",
        on_metrics=Published(config),
    )
