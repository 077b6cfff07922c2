"""Steps without finite gradients: skipped without a trace, and after too many a diagnosis."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

from pipeline.tracking.config import server_uri
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.driver.launch import absolute
from pipeline.training.job import EarlyEnd
from pipeline.training.worker import loop
from tests.support.lone_worker import LoneWorker, process_group  # noqa: F401
from tests.support.mini_shards import MiniShards

REPOSITORY = Path(__file__).resolve().parents[4]


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def config(mini_shards: MiniShards, tmp_path, monkeypatch) -> TrainMixConfig:
    monkeypatch.setattr(loop, "Saver", lambda *_: SimpleNamespace(news=0))  # It saves nothing.
    config = mini_shards.config(tmp_path, "nan", steps=30, clip_norm=1.0, ema_decay=0.5)
    return replace(config, train=replace(config.train, max_nonfinite_steps=2))


def test_a_skipped_step_leaves_no_trace_and_the_next_goes_on(config):
    worker = LoneWorker(config, {1, 2, 4, 5})
    assert np.isfinite(worker.step())
    before = worker.tensors()
    assert any("running_mean" in name for name in before)
    for number in (1, 2):
        assert np.isnan(worker.step())
        after = worker.tensors()
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert worker.loop.nonfinite == worker.loop.skipped == number
    assert np.isfinite(worker.step())
    changed = [
        name for name, value in worker.tensors().items() if not torch.equal(value, before[name])
    ]
    assert len(changed) > len(before) / 2
    assert all(value.isfinite().all() for value in after.values())
    assert (worker.loop.nonfinite, worker.loop.skipped) == (0, 2)
    worker.step()
    worker.step()  # Two more in a row are allowed again.
    assert worker.loop.ended == EarlyEnd()
    assert (worker.state.step, worker.loop.skipped) == (6, 4)


def test_one_more_than_allowed_ends_with_a_diagnosis(config):
    worker = LoneWorker(config, set(range(1, 30)))
    for _ in range(3):
        worker.step()
        assert worker.loop.ended == EarlyEnd()
    worker.step()
    text = worker.loop.ended.failed
    first = worker.loop.order.rows(3)[0]
    for words in (
        "train.max_nonfinite_steps=2: 3 steps in a row",
        "the last is step 4:",
        "lower train.lr",
        "learning rate 0.0",
        "gradient norm nan",
        f"rows {first.t} to {first.t + 3}",
        worker.loop.order.name_of(first),
        "from before step 2",
    ):
        assert words in text
    assert "\n" not in text


def test_weights_that_are_damaged_themselves_are_told(config):
    worker = LoneWorker(config, set())
    name, weight = next(iter(worker.state.lseg.named_parameters()))
    weight.data.view(-1)[0] = float("nan")
    for _ in range(3):
        worker.step()
    assert f"the first is {name}" in worker.loop.ended.failed
    assert "resume from an older checkpoint" in worker.loop.ended.failed


# Slow: a whole run of the command on a Ray of its own.
@pytest.mark.slow
def test_a_run_that_diverges_ends_in_one_message(mini_shards: MiniShards, tmp_path):
    config = absolute(mini_shards.config(tmp_path / "runs", "diverged", steps=40))
    config = replace(
        config,
        train=replace(
            config.train, lr=1e30, max_nonfinite_steps=4, checkpoint_every=2, log_every=1
        ),
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain(config)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs/train_mix.py"), "--config", str(recipe)],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    print(done.stderr[-2000:])
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "train.max_nonfinite_steps=4: 5 steps in a row" in line
    # No traceback of ours: on a loaded machine Ray may print one about its own answers.
    assert f'File "{REPOSITORY / "pipeline"}' not in done.stderr
    client = MlflowClient(server_uri(config.tracking))
    found = [e for e in client.search_experiments()]
    (run,) = client.search_runs([e.experiment_id for e in found], "run_name = 'diverged'")
    assert run.info.status == "FAILED"
    assert run.data.metrics["train/skipped_steps"] == 5
    kept = [p for p in (tmp_path / "runs/diverged").glob("step_*")]
    for folder in kept:  # None of the steps that were skipped.
        assert np.isfinite(json.loads((folder / "metrics.json").read_text())["train/grad_norm"])
    assert len(kept) <= 1
