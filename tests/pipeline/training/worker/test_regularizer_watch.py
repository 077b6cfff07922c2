"""The gain of the regulariser in log and MLflow, and its warning."""

import contextlib
import logging
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from model.config import RegularizerConfig
from model.lseg import LSeg, build_lseg
from pipeline.training.driver.launch import plan_run, train
from pipeline.training.worker.regularizer_watch import BIAS_METRIC, METRIC, RegularizerWatch
from tests.support.mini_shards import tiny_model


class Recorder:
    """Takes metrics as a tracker does."""

    def __init__(self):
        self.points = []

    def log_metrics(self, metrics, step):
        self.points += [(step, name, value) for name, value in metrics.items()]


def network(init: str, bias: float | None = None) -> LSeg:
    torch.manual_seed(3)
    block = RegularizerConfig(kind="depthwise", depth=4, activation="lrelu", init=init)
    lseg = build_lseg(tiny_model(regularizer=block), 512).train()
    if bias is not None:
        conv = lseg.regularizer.convs[0]
        assert isinstance(conv, nn.Conv2d)
        nn.init.constant_(conv.weight, 0.02)
        nn.init.constant_(conv.bias, bias)  # pyright: ignore[reportArgumentType]
    return lseg


def watch(lseg: LSeg, steps, interval: int = 5):
    recorder = Recorder()
    watcher = RegularizerWatch(lseg, recorder, interval, contextlib.nullcontext())  # type: ignore[arg-type]
    image = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    for step in steps:
        watcher.look(step, image, torch.randn(6, 512))
    assert [p[0] for p in recorder.points if p[1] == BIAS_METRIC] == [
        p[0] for p in recorder.points if p[1] == METRIC
    ]
    return [point for point in recorder.points if point[1] == METRIC]


def test_at_the_start_and_at_intervals(caplog):
    caplog.set_level(logging.INFO)
    lseg = network("identity")
    points = watch(lseg, range(7, 17))  # as after a resumption
    assert [(step, name) for step, name, _ in points] == [(7, METRIC), (10, METRIC), (15, METRIC)]
    assert all(0.1 < gain < 10 for *_, gain in points)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert lseg.training
    assert all(parameter.grad is None for parameter in lseg.parameters())


def test_a_dead_block_is_warned_of_once_with_the_cause(caplog):
    points = watch(network("reference", bias=-0.3), range(11))
    assert max(gain for *_, gain in points) < 1e-3
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "bias is negative" in warnings[0]
    assert "init 'identity'" in warnings[0]


def test_nothing_to_measure_without_a_block():
    lseg = build_lseg(tiny_model(), 512)
    assert watch(lseg, range(3)) == []


@pytest.mark.long  # A whole training.
def test_a_run_records_it(mini_shards, tmp_path):
    config = mini_shards.config(tmp_path, "watched", steps=3, log_every=2, val_images=1)
    block = RegularizerConfig(kind="depthwise", depth=2, activation="lrelu")
    client = MlflowClient(mini_shards.tracking_uri)
    client.search_experiments()  # makes the tables, for which a short run does not wait
    train(plan_run(replace(config, model=tiny_model(regularizer=block))))
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    (run,) = client.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'watched'", max_results=2
    )
    history = client.get_metric_history(run.info.run_id, METRIC)
    assert sorted(point.step for point in history) == [0, 2]
    assert all(0.01 < point.value < 10 for point in history)
