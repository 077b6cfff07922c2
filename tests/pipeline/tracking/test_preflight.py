"""A training asks MLflow before it starts Ray; see `test_refusals` for what MLflow may say."""

from types import SimpleNamespace

import pytest

from pipeline.tracking import preflight
from pipeline.tracking.refusals import MlflowRefused
from pipeline.tracking.tracker import TrackingConfig
from pipeline.training.config import ClusterConfig, RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.driver import launch
from pipeline.training.job import Lineage


def refuse(self):
    raise MlflowRefused("tracking.experiment=lseg: was deleted")


def test_a_refused_training_starts_no_ray_and_a_nested_one_does_not_ask(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(b"")
    monkeypatch.setattr(preflight, "_is_used", lambda uri, database: True)
    monkeypatch.setattr(preflight.MlflowRun, "find_experiment", refuse)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = RunConfig(name="mine", storage=str(tmp_path))
    # It may begin on half of its GPUs, and with the CPUs of the workers alone.
    cluster = ClusterConfig(num_workers=2, min_workers=1, use_gpu=True)
    train = TrainConfig(steps=1, warmup_steps=0, batch_size=2)
    config = TrainMixConfig(run=run, tracking=tracking, train=train, cluster=cluster)
    plan = SimpleNamespace(config=config, announce=lambda first: None, validation_tags={})
    monkeypatch.setattr(launch, "first_step", lambda plan: 0)
    started: list[object] = []
    with pytest.raises(MlflowRefused, match="was deleted"):
        launch.train(plan, lambda *needed: started.append(needed))
    assert started == []

    def fit(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_fit", fit)
    with pytest.raises(KeyboardInterrupt):
        launch.train(plan, lambda *needed: started.append(needed), Lineage(parent_run_id="sweep"))
    assert started == [(2.5, 1, 1.0)]
    assert not (tmp_path / "mine" / "train.lock").exists()
