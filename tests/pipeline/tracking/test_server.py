"""The tracker against a real `mlflow server` that is refused, frozen, killed and back again."""

import subprocess
import sys
import time

import pytest

from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.pipeline.tracking.recorded import log_steps_at_once
from tests.support.mlflow_server import MlflowServer, wait_until

pytestmark = pytest.mark.slow

_CALLS = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


def log_steps(tracker, first, last=None):
    """Logs steps in the middle of whatever the server does."""
    log_steps_at_once(tracker, first, first + _CALLS if last is None else last)


def runs_of(server, name):
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lseg")
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if run.info.run_name == name]


def steps_of(server, run_id):
    """Steps in the order of their times: what was sent late must not look late."""
    from mlflow import MlflowClient

    history = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
    return [metric.step for metric in sorted(history, key=lambda m: (m.timestamp, m.step))]


def check(server, name, num_steps):
    """One run, finished, with every step exactly once."""
    (run,) = runs_of(server, name)
    assert run.info.status == "FINISHED"
    assert steps_of(server, run.info.run_id) == list(range(num_steps))
    return run


def test_refused_from_the_start(server, tmp_path, caplog):
    server.kill()
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(TrackingConfig(uri=server.uri), run_name="refused", spill_path=spill)
    log_steps(tracker, 0)
    wait_until(lambda: "MLflow does not answer" in caplog.text)
    assert spill.stat().st_size > 0
    assert tracker.run_id is None
    server.start()
    log_steps(tracker, _CALLS)
    note = tmp_path / "note.txt"
    note.write_text("note")
    tracker.log_artifact(note, "notes")
    assert tracker.wait_for_run(60)
    tracker.close(timeout_s=60)
    run = check(server, "refused", 2 * _CALLS)
    assert tracker.ui_hint() == (
        f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )
    assert list(server.folder.glob("artifacts/**/notes/note.txt"))
    assert not spill.exists()


def test_frozen_in_the_middle(server, tmp_path, caplog):
    server.start()
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(TrackingConfig(uri=server.uri), run_name="frozen", spill_path=spill)
    log_steps(tracker, 0)
    assert tracker.wait_for_run(60)
    server.freeze()
    try:
        log_steps(tracker, _CALLS)
        wait_until(lambda: "MLflow does not answer" in caplog.text)  # The first call timed out.
        log_steps(tracker, 2 * _CALLS)
    finally:
        server.thaw()
    wait_until(server.healthy)
    log_steps(tracker, 3 * _CALLS)
    tracker.close(timeout_s=60)
    check(server, "frozen", 4 * _CALLS)
    assert not spill.exists()


def test_frozen_while_the_run_is_created(server, tmp_path, caplog):
    server.start()
    server.freeze()
    try:
        spill = tmp_path / "tracking.jsonl"
        tracker = Tracker.start(TrackingConfig(uri=server.uri), run_name="early", spill_path=spill)
        log_steps(tracker, 0)
        wait_until(lambda: "MLflow does not answer" in caplog.text)
    finally:
        server.thaw()
    assert tracker.wait_for_run(60)
    tracker.close(timeout_s=60)
    check(server, "early", _CALLS)


def test_killed_and_restarted_in_the_middle(server, tmp_path, caplog):
    server.start()
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(TrackingConfig(uri=server.uri), run_name="killed", spill_path=spill)
    log_steps(tracker, 0)
    assert tracker.wait_for_run(60)
    server.kill()
    log_steps(tracker, _CALLS)
    wait_until(lambda: "MLflow does not answer" in caplog.text)
    server.start()
    log_steps(tracker, 2 * _CALLS)
    tracker.close(timeout_s=60)
    check(server, "killed", 3 * _CALLS)


def test_frozen_at_the_end_is_replayed(server, tmp_path):
    server.start()
    config = TrackingConfig(uri=server.uri)
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(config, run_name="late", spill_path=spill)
    assert tracker.wait_for_run(60)
    server.freeze()
    try:
        log_steps(tracker, 0)
        begin = time.monotonic()
        tracker.close(timeout_s=3)
        assert time.monotonic() - begin < 20
    finally:
        server.thaw()
    wait_until(server.healthy)
    assert spill.read_bytes().count(b"\n") >= _CALLS
    command = [sys.executable, "-m", "jobs.track", "--replay", str(spill)]
    subprocess.run([*command, "--tracking.uri", server.uri], check=True)
    check(server, "late", _CALLS)
    assert not spill.exists()
