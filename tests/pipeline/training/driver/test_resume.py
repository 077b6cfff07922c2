"""Interrupted runs of `train()` on a real Ray end with the weights of an undisturbed one."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipeline.checkpoints.files import step_folder
from pipeline.errors import UserError
from pipeline.tracking.config import server_uri
from pipeline.training.config import RunConfig, TrainMixConfig
from pipeline.training.driver import launch
from pipeline.training.driver.failures import TrainingDefect
from pipeline.training.driver.launch import Outcome, absolute, plan_run, train
from pipeline.training.saving import snapshot
from tests.support.mini_shards import MiniShards, tiny_model
from tests.support.train_workers import train_workers

STEPS = 24
SETTINGS = {"steps": STEPS, "batch_size": 2, "checkpoint_every": 4, "warmup_steps": 2}


def run(mini: MiniShards, storage: Path, name: str, **settings) -> TrainMixConfig:
    return mini.config(storage, name, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def undisturbed(mini_shards, tmp_path_factory) -> tuple[TrainMixConfig, Outcome]:
    """A run that went to its end in one go."""
    config = run(mini_shards, tmp_path_factory.mktemp("undisturbed"), "whole")
    # The first client makes the tables of a new store, which may take as long as the run.
    MlflowClient(server_uri(absolute(config).tracking)).search_experiments()
    return config, train(plan_run(config))


def assert_same_training(one: Outcome, other: Outcome) -> None:
    first, second = (load_file(f"{o.checkpoint}/model.safetensors") for o in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-6)
    states = [
        torch.load(f"{o.checkpoint}/trainer.pt", weights_only=True)["optimizer"]["state"]
        for o in (one, other)
    ]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        buffers = state["momentum_buffer"], states[1][key]["momentum_buffer"]
        torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-6)


@contextmanager
def killer(run_config: RunConfig, how: str = "kill") -> Iterator[list[tuple[int, int]]]:
    """Kills (or suspends) one training worker as soon as the run has a checkpoint.

    Yields:
        Filled with the process id and the step of the newest checkpoint at that moment.
    """
    killed: list[tuple[int, int]] = []
    stop = threading.Event()

    def wait_and_kill() -> None:
        while not stop.wait(0.02):
            try:
                step = snapshot.latest_step(run_config)
            except ValueError:  # Ray writes the snapshot in place, and has just begun to.
                continue
            if step and (workers := train_workers()):
                getattr(workers[0], how)()
                killed.append((workers[0].pid, step))
                return

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(mini_shards, undisturbed, tmp_path):
    config = run(mini_shards, tmp_path, "killed", max_failures=1)
    with killer(config.run) as killed:
        outcome = train(plan_run(config))
    assert len(killed) == 1
    assert killed[0][1] < STEPS
    assert not psutil.pid_exists(killed[0][0])
    assert outcome.checkpoint.endswith(step_folder(STEPS))
    assert outcome.metrics["step"] == STEPS
    assert_same_training(undisturbed[1], outcome)


@pytest.mark.long
def test_a_worker_that_stands_still_is_found_and_replaced(mini_shards, undisturbed, tmp_path):
    config = run(mini_shards, tmp_path, "still", num_workers=2, max_failures=1)
    config = replace(config, cluster=replace(config.cluster, stuck_s=10.0))
    # One is frozen from outside, and so writes no stacks; the other one waits for it, and does.
    with killer(config.run, "suspend") as frozen:
        outcome = train(plan_run(config))
    assert len(frozen) == 1
    assert not psutil.pid_exists(frozen[0][0])
    (report,) = (tmp_path / "still/stuck").iterdir()
    assert "in step" in report.read_text()
    assert outcome.metrics["step"] == STEPS
    order = (Path(outcome.checkpoint) / "order.txt").read_text()
    assert order == (Path(undisturbed[1].checkpoint) / "order.txt").read_text()


@pytest.mark.long
def test_a_second_call_goes_on_where_the_first_broke_off(mini_shards, undisturbed, tmp_path):
    config = run(mini_shards, tmp_path, "again", max_failures=0)
    with killer(config.run) as killed, pytest.raises(Exception, match=r"died|failure|error"):
        train(plan_run(config))
    done = snapshot.latest_step(config.run)
    assert killed[0][1] <= done < STEPS
    assert_same_training(undisturbed[1], train(plan_run(config)))
    assert snapshot.latest_step(config.run) == STEPS


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(undisturbed):
    config, outcome = undisturbed
    folder = Path(outcome.checkpoint)
    kept = sorted(path.name for path in folder.parent.glob("step_*"))
    # The one before may be older than four steps: where two were still on their way, it was left
    # out.
    assert len(kept) == 2
    assert kept[-1] == step_folder(STEPS)
    # An evaluation, wherever it runs, writes to the MLflow run that made the checkpoint.
    run_id = json.loads((folder / "provenance.json").read_text())["mlflow_run_id"]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before
    again = train(plan_run(config))
    client = MlflowClient(server_uri(absolute(config).tracking))
    assert client.get_run(run_id).info.run_name == config.run.name
    assert again.checkpoint == outcome.checkpoint
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.metrics["step"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": tiny_model(features=8)}, ("model.features", "16", "now 8")),
        ({"train": {"batch_size": 4}}, ("train.batch_size", "2", "now 4")),
        ({"train": {"labels": "all"}}, ("train.labels",)),
        ({"run": {"seed": 4}}, ("run.seed", "3", "now 4")),
        ({"data": {"weights": "size"}}, ("data.weights", "'equal'", "now 'size'")),
    ],
)
def test_another_run_of_the_same_name_is_refused(undisturbed, change, words):
    config = undisturbed[0]
    for part, values in change.items():
        new = replace(getattr(config, part), **values) if isinstance(values, dict) else values
        config = replace(config, **{part: new})
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        train(plan_run(config))
    assert time.monotonic() - began < 10  # Told before any worker starts.
    for word in ("run.name=whole", *words, "another name"):
        assert word in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.slow
def test_a_defect_in_writing_a_checkpoint_is_not_tried_again(mini_shards, tmp_path, monkeypatch):
    # JSON takes no bytes: so the writer fails, in each attempt that there might be.
    monkeypatch.setattr(launch, "library_versions", lambda: {"torch": b"2"})
    config = run(mini_shards, tmp_path, "defect", max_failures=3)
    with pytest.raises(TrainingDefect, match=r"resumes from the start[^$]*TypeError: Object of"):
        train(plan_run(config))
    client = MlflowClient(server_uri(absolute(config).tracking))
    # The store is that of the other tests' runs too.
    experiment = client.get_experiment_by_name("lseg").experiment_id
    (found,) = client.search_runs([experiment], "attributes.run_name = 'defect'")
    assert found.info.status == "FAILED"


def test_a_run_that_does_not_exist_has_no_steps(tmp_path):
    assert snapshot.latest_step(RunConfig(name="new", storage=str(tmp_path))) == 0
