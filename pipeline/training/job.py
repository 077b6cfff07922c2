"""What the driver tells each worker of a run, and the MLflow run that both write to."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.ingest import Corpus
from pipeline.training import checkpoint
from pipeline.training.config import TrainMixConfig
from pipeline.training.labels import LabelSpace
from pipeline.training.tracking import Tracker


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    config: TrainMixConfig
    labels: LabelSpace
    val: Corpus | None
    tags: dict[str, str] = field(default_factory=dict)
    """Provenance: git commit, fingerprints, versions, Ray job."""


def open_tracker(config: TrainMixConfig, tags: dict[str, str] | None = None) -> Tracker:
    """The MLflow run of a training run: found again under the same name and storage.

    Args:
        config: With absolute paths.
        tags: Provenance.
    """
    params = json.loads(json.dumps(checkpoint.plain(config)))
    return Tracker.start(
        config.tracking,
        run_name=config.run.name,
        spill_path=_spill_path(config),
        tags=tags,
        params=params,
    )


def _spill_path(config: TrainMixConfig) -> Path:
    """Beside the checkpoints; for a run in S3, a folder of this machine."""
    storage = config.run.storage
    folder = Path(storage) / config.run.name if "://" not in storage else Path.home() / ".lseg"
    return folder / f"tracking-{config.run.name}.jsonl"
