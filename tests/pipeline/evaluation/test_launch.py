"""What is refused before an evaluation starts."""

from dataclasses import replace

import pytest

from model.checkpoint import save_checkpoint
from model.lseg import build_lseg
from pipeline.evaluation.config import EvaluateConfig, WorkersConfig
from pipeline.evaluation.launch import MANY_SCORES, cost_of, evaluate
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.refusals import MlflowRefused
from tests.support.mini_shards import tiny_model
from tests.support.mlflow_store import new_store


@pytest.mark.parametrize("protocol", ["unified", "behaviours"])
def test_what_mlflow_would_never_take_is_refused_before_the_work(tmp_path, protocol):
    from mlflow import MlflowClient

    save_checkpoint(tmp_path / "checkpoint", build_lseg(tiny_model(), 512), ["road"])
    uri = new_store(tmp_path)
    client = MlflowClient(uri)
    number = client.create_experiment("mine-evaluation")
    client.delete_experiment(number)
    config = EvaluateConfig(
        checkpoint=str(tmp_path / "checkpoint"),
        protocol=protocol,
        shards=str(tmp_path / "no shards: they are not looked for"),
        out=str(tmp_path / "out"),
        tracking=TrackingConfig(uri=uri, experiment="mine"),
    )
    with pytest.raises(MlflowRefused, match=rf"mlflow experiments restore -x {number}`"):
        evaluate(config)
    assert list((tmp_path / "out").iterdir()) == []


def test_many_scores_without_a_gpu_are_said_before_they_are_paid():
    workers = WorkersConfig(use_gpu=False)
    config = EvaluateConfig(checkpoint="x", shards="y", workers=workers)
    assert cost_of(config, MANY_SCORES // 100, 100) == ""
    assert cost_of(config, 233, 194).startswith(
        "each of 233 images is asked 194 labels without a GPU"
    )
    assert cost_of(config, 233, 194).endswith("; --max_images N takes fewer images")
    everything = replace(config, labels="all")
    assert "--labels checkpoint asks those that were trained" in cost_of(everything, 233, 194)
    assert cost_of(replace(config, workers=WorkersConfig(use_gpu=True)), 10**6, 194) == ""
