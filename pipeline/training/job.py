"""What the driver tells each worker of a run, and the MLflow run that both write to."""

import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from pipeline.data.datasets.few_shot.training import class_of
from pipeline.data.ingest.mixture import Mixture
from pipeline.data.ingest.stream import Corpus
from pipeline.data.shards.union import pixels_in
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.questions.labels import LabelSpace


@dataclass(frozen=True)
class Lineage:
    """Where a run comes from, if it is part of something larger."""

    parent_run_id: str = ""
    """MLflow run to nest it in."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the run besides those of provenance."""


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    config: TrainMixConfig
    labels: LabelSpace
    corpus: Corpus
    """Of the training split."""
    mixture: Mixture
    """The training stream."""
    val: Corpus | None
    """Of the validation split, where there is one."""
    stop: Any = None
    """The actor that tells whether the run was asked to stop; see `pipeline.training.stopping`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Provenance: git commit, fingerprints, versions, Ray job."""
    lineage: Lineage = field(default_factory=Lineage)
    """The sweep that the run is a trial of, say."""

    @property
    def is_few_shot(self) -> bool:
        """Whether the run trains on the pairs of a few-shot benchmark."""
        return class_of(self.corpus.manifests[self.mixture.datasets[0]]) is not None

    @property
    def own_labels(self) -> dict[str, np.ndarray]:
        """(K,) bool by dataset of the mixture: which labels of the run its masks show."""
        taxonomy, manifests = self.corpus.taxonomy, self.corpus.manifests
        ids = [taxonomy.id_of(name) for name in self.labels.names]
        return {
            name: pixels_in([manifests[name]], taxonomy)[ids] > 0 for name in self.mixture.datasets
        }


@dataclass(frozen=True)
class Verdict:
    """How the workers ended without an error; the same on each."""

    stopped: str = ""
    """Why the run was stopped from outside, after a checkpoint."""
    failed: str = ""
    """Why it cannot go on: a diagnosis for the user."""


def prepare_process(config: TrainMixConfig) -> torch.device:
    """Sets up a worker's log, threads and kernels; returns its device."""
    _log_to_driver()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        share = max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size())
        torch.set_num_threads(config.cluster.threads_per_worker or share)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.use_deterministic_algorithms(config.train.deterministic)
    return device


def _log_to_driver() -> None:
    """Sends a worker's own log lines to stdout, which Ray passes on, and of Ray's only warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("pipeline")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.WARNING)
    # Batches arrive as read-only views into Ray's object store; nothing here writes into them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def open_tracker(
    config: TrainMixConfig, tags: dict[str, str] | None = None, parent_run_id: str = ""
) -> Tracker:
    """The MLflow run of a training run: found again under the same name and storage.

    Args:
        config: With absolute paths.
        tags: Provenance.
        parent_run_id: MLflow run to nest a new one in.
    """
    storage = config.run.storage
    params = json.loads(json.dumps(plain(config)))
    return Tracker.start(
        config.tracking,
        run_name=config.run.name,
        spill_path=_spill_path(config),
        tags=tags,
        params=params,
        parent_run_id=parent_run_id,
        copy_to=f"{storage}/{config.run.name}" if "://" in storage else "",
    )


def _spill_path(config: TrainMixConfig) -> Path:
    """Beside the checkpoints; for a run in S3, in a folder of this machine, with copies there."""
    storage = config.run.storage
    folder = Path(storage) / config.run.name if "://" not in storage else Path.home() / ".lseg"
    return folder / f"tracking-{config.run.name}.jsonl"
