"""The `Saver` of a worker without a cluster around it, on a real local storage of Ray's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.train
import torch
from ray.train.v2._internal.execution.storage import StorageContext

from pipeline.storage import retry as patience
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import label_space
from pipeline.training.saving.saver import Saver
from pipeline.training.state.state import build_state
from tests.support.mini_shards import tiny_model


def local_saver(disk: Path, monkeypatch, patience_s: float, keep_best: str = "") -> Saver:
    """Of worker 0 of the run `mine` on this disk."""
    config = TrainMixConfig(
        run=RunConfig(name="mine", storage=str(disk)),
        model=tiny_model(),
        train=TrainConfig(steps=9, storage_patience_s=patience_s, keep_best=keep_best),
    )
    store = StorageContext(storage_path=str(disk), experiment_dir_name="mine")
    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: store)
    )
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.1)
    plan = SimpleNamespace(config=config, labels=label_space(["road"]))
    job: Any = SimpleNamespace(plan=plan, tags={}, run_tags=dict)
    return Saver(job, build_state(config, 512, torch.device("cpu")), 0)
