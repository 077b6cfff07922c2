"""The tracker against a real MLflow in a sqlite file, and against a port where nothing listens.

Sender and replay are tested here too, as parts of the whole;
`test_server.py` has the outages of a real server.
"""

import contextlib
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.track import ReplayConfig, replay_job
from pipeline.errors import UserError
from pipeline.tracking.records import Record, RunIdentity, from_line, to_line
from pipeline.tracking.replay import replay, replay_all
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.pipeline.tracking.recorded import (
    client_of,
    log_steps,
    log_steps_at_once,
    runs_of,
    spilled,
    steps_of,
    wait_until,
)

REPO = Path(__file__).parents[3]
SECRET = "hunter2-hunter2"

# A process of its own: `python -c CODE URI SPILL_PATH`.
_START = """
import sys, time
from pathlib import Path
from pipeline.tracking.tracker import Tracker, TrackingConfig
t = Tracker.start(TrackingConfig(uri=sys.argv[1]), run_name="a", spill_path=Path(sys.argv[2]))
"""


# The normal way, on sqlite.


def test_everything_arrives(new_sqlite, tmp_path):
    sqlite = new_sqlite
    image = tmp_path / "overlay.png"
    image.write_bytes(b"image")
    before_ms = time.time_ns() // 1_000_000
    with Tracker.start(
        sqlite,
        run_name="a",
        spill_path=None,
        tags={"git_commit": "abc"},
        params={"train": {"lr": 1}},
    ) as tracker:
        log_steps(tracker, 0, 1200)
        tracker.log_metrics({"val/ade 20k?/miou": float("nan")}, step=5)
        tracker.log_artifact(image, "images")
        tracker.log_text("hello", "notes/a.txt")
        tracker.log_dict({"lr": 1, "list": (1, 2)}, "config.yaml")
        assert tracker.wait_for_run(60)
    (run,) = runs_of(sqlite, "a")
    assert run.info.run_id == tracker.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["git_commit"] == "abc"
    assert run.data.params == {"train.lr": "1"}
    history = client_of(sqlite).get_metric_history(run.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1200))
    assert all(metric.value == 1 / (metric.step + 1) for metric in history)
    assert all(before_ms <= metric.timestamp <= run.info.end_time for metric in history)
    assert math.isnan(run.data.metrics["val_miou/ade 20k_"])
    assert "val/ade 20k_/miou" not in run.data.metrics
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (files / "images" / "overlay.png").read_bytes() == b"image"
    assert (files / "notes" / "a.txt").read_text() == "hello"
    assert (files / "config.yaml").read_text() == "lr: 1\nlist:\n- 1\n- 2\n"
    assert list(Path.cwd().iterdir()) == []  # no ./mlruns, no ./mlflow.db


def test_the_same_name_and_storage_continue_the_same_run(sqlite, tmp_path):
    spill = tmp_path / "run" / "tracking.jsonl"
    first = Tracker.start(sqlite, run_name="a", spill_path=spill, params={"lr": 1, "seed": 0})
    log_steps(first, 0, 5)
    first.close("FAILED", timeout_s=60)
    assert runs_of(sqlite, "a")[0].info.status == "FAILED"

    second = Tracker.start(sqlite, run_name="a", spill_path=spill, params={"lr": 2, "seed": 0})
    assert second.wait_for_run(60) == first.run_id
    assert runs_of(sqlite, "a")[0].info.status == "RUNNING"
    log_steps(second, 5, 8)
    second.close(timeout_s=60)
    (run,) = runs_of(sqlite, "a")
    assert run.info.status == "FINISHED"
    assert steps_of(sqlite, run.info.run_id) == list(range(8))
    assert run.data.params == {"lr": "1", "seed": "0"}
    assert run.data.tags["lseg.changed_on_resume.lr"] == "2"
    assert not any(tag.endswith("on_resume.seed") for tag in run.data.tags)


def test_another_name_another_run_and_nesting(sqlite, tmp_path):
    spill = tmp_path / "tracking.jsonl"
    parent = Tracker.start(sqlite, run_name="sweep", spill_path=spill)
    parent_id = parent.wait_for_run(60)
    parent.close()
    child = Tracker.start(sqlite, run_name="depth 4", spill_path=spill, parent_run_id=parent_id)
    child.close(timeout_s=60)
    assert child.run_id != parent_id
    assert runs_of(sqlite, "depth 4")[0].data.tags["mlflow.parentRunId"] == parent_id


def test_a_given_run_id_wins_and_a_deleted_run_is_replaced(sqlite):
    first = Tracker.start(sqlite, run_name="a", spill_path=None)
    run_id = first.wait_for_run(60)
    first.close()
    second = Tracker.start(sqlite, run_name="a", spill_path=None, run_id=run_id)
    assert second.wait_for_run(60) == run_id
    second.close()
    client_of(sqlite).delete_run(run_id)
    third = Tracker.start(sqlite, run_name="a", spill_path=None, run_id=run_id)
    assert third.wait_for_run(60) not in (None, run_id)
    third.close()


def test_an_exception_marks_the_run_failed(sqlite):
    def train():
        with Tracker.start(sqlite, run_name="a", spill_path=None) as tracker:
            tracker.wait_for_run(60)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train()
    assert runs_of(sqlite, "a")[0].info.status == "FAILED"


def test_what_is_refused_is_set_aside_and_the_rest_arrives(sqlite, tmp_path):
    spill = tmp_path / "run" / "tracking.jsonl"
    with Tracker.start(sqlite, run_name="a", spill_path=spill) as tracker:
        tracker.log_metrics({"ok": 1.0}, step=1)
        tracker.log_metrics({"a//b": 1.0}, step=2)  # MLflow refuses such a name
        tracker.log_artifact(tmp_path / "never written.png")
        tracker.log_metrics({"ok": 3.0}, step=3)
        tracker.wait_for_run(60)
    assert steps_of(sqlite, tracker.run_id, "ok") == [1, 3]
    refused = [record for _, record in spilled(spill.with_suffix(".refused.jsonl"))]
    assert [record.kind for record in refused] == ["metrics", "artifact"]
    assert not spill.exists()


def test_ui_hint_names_the_run(sqlite, dead):
    tracker = Tracker.start(sqlite, run_name="a", spill_path=None)
    run_id = tracker.wait_for_run(60)
    tracker.close()
    assert f"mlflow ui --backend-store-uri {sqlite.uri}" in tracker.ui_hint()
    assert tracker.ui_hint().endswith(
        f"/#/experiments/2/runs/{run_id}?workflowType=machine_learning"
    )
    unknown = Tracker.start(dead, run_name="a", spill_path=None)
    assert unknown.ui_hint() == dead.uri
    unknown.close(timeout_s=5)


# An outage from the first to the last moment.


def test_a_dead_server_does_not_slow_and_everything_is_replayed(sqlite, dead, tmp_path, capsys):
    spill = tmp_path / "run" / "tracking.jsonl"
    note = tmp_path / "note.txt"
    note.write_text("note")
    begin_ms = time.time_ns() // 1_000_000
    tracker = Tracker.start(dead, run_name="a", spill_path=spill, params={"lr": 1}, tags={"t": "x"})
    log_steps_at_once(tracker, 0, 1000)
    tracker.log_artifact(note)
    tracker.log_text("hello", "a.txt")
    begin = time.monotonic()
    tracker.close("KILLED", timeout_s=20)
    assert time.monotonic() - begin < 25
    assert tracker.run_id is None
    end_ms = time.time_ns() // 1_000_000
    lines = spilled(spill)
    assert [r.step for _, r in lines if r.kind == "metrics"] == list(range(1000))
    copy = spill.read_bytes()

    counts = replay(spill, sqlite)
    assert (counts.sent, counts.metrics, counts.left) == (len(lines), 2000, 0)
    assert not spill.exists()
    (run,) = runs_of(sqlite, "a")
    assert run.info.status == "KILLED"
    assert (run.data.params, run.data.tags["t"]) == ({"lr": "1"}, "x")
    history = client_of(sqlite).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1000))
    assert all(begin_ms <= metric.timestamp <= end_ms for metric in history)
    files = {file.path for file in client_of(sqlite).list_artifacts(run.info.run_id)}
    assert files == {"note.txt", "a.txt"}

    # The same file once more, through the job: nothing is there twice.
    spill.write_bytes(copy)
    replay_job(ReplayConfig(replay=str(spill), tracking=sqlite))
    assert f"sent {len(lines)} records (2000 metric values)" in capsys.readouterr().out
    assert len(runs_of(sqlite, "a")) == 1
    assert steps_of(sqlite, run.info.run_id) == list(range(1000))


def test_the_next_start_sends_what_an_outage_left(sqlite, dead, tmp_path):
    spill = tmp_path / "run" / "tracking.jsonl"
    first = Tracker.start(dead, run_name="a", spill_path=spill)
    log_steps(first, 0, 10)
    first.close("FAILED", timeout_s=20)
    second = Tracker.start(sqlite, run_name="a", spill_path=spill)
    log_steps(second, 10, 12)
    assert second.wait_for_run(60)
    second.close(timeout_s=60)
    (run,) = runs_of(sqlite, "a")
    assert run.info.status == "FINISHED"
    assert steps_of(sqlite, run.info.run_id) == list(range(12))
    assert not spill.exists()


def test_another_runs_leftovers_are_kept_apart(sqlite, dead, tmp_path):
    spill = tmp_path / "tracking.jsonl"
    first = Tracker.start(dead, run_name="old", spill_path=spill)
    log_steps(first, 0, 3)
    first.close(timeout_s=20)
    second = Tracker.start(sqlite, run_name="new", spill_path=spill)
    second.wait_for_run(60)
    second.close(timeout_s=60)
    assert "train/loss" not in runs_of(sqlite, "new")[0].data.metrics
    (kept,) = tmp_path.glob("tracking-*.jsonl")
    assert replay(kept, sqlite).metrics == 6
    assert steps_of(sqlite, runs_of(sqlite, "old")[0].info.run_id) == [0, 1, 2]


def test_a_full_queue_goes_to_the_file(tmp_path):
    spill = tmp_path / "tracking.jsonl"
    # Takes connections and never answers: who waits for one call waits for its 5 s.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = TrackingConfig(uri=uri, queue_size=10)
        tracker = Tracker.start(config, run_name="a", spill_path=spill)
        log_steps_at_once(tracker, 0, 2000)
        tracker.close(timeout_s=20)
    steps = [record.step for _, record in spilled(spill) if record.kind == "metrics"]
    assert steps == list(range(2000))


def test_without_a_file_memory_is_bounded_and_the_loss_is_reported(dead, caplog):
    config = TrackingConfig(uri=dead.uri, queue_size=10)
    with caplog.at_level(logging.ERROR):
        tracker = Tracker.start(config, run_name="a", spill_path=None)
        log_steps(tracker, 0, 50)
        tracker.close(timeout_s=20)
    assert "50 records are lost" in caplog.messages[-1]


def test_a_spill_file_that_cannot_be_written_stops_nothing(dead, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracker = Tracker.start(dead, run_name="a", spill_path=tmp_path / "file" / "t.jsonl")
    log_steps_at_once(tracker, 0, 100)
    with caplog.at_level(logging.ERROR):
        tracker.close(timeout_s=20)
    assert "records are lost" in caplog.text


def test_a_killed_process_leaves_its_records(dead, tmp_path):
    spill = tmp_path / "tracking.jsonl"
    code = (
        f"{_START}"
        "for step in range(10**6): t.log_metrics({'loss': 1.0}, step=step); time.sleep(0.02)\n"
    )
    command = [sys.executable, "-c", code, dead.uri, str(spill)]
    with subprocess.Popen(command, cwd=REPO) as process:
        try:
            wait_until(lambda: spill.exists() and spill.read_bytes().count(b"\n") > 100)
        finally:
            process.kill()
    steps = [from_line(line)[1].step for line in spill.read_bytes().splitlines()]
    assert steps == list(range(len(steps)))


def test_a_killed_process_and_the_next_one_lose_and_repeat_nothing(sqlite, tmp_path):
    spill, printed = tmp_path / "tracking.jsonl", tmp_path / "printed.txt"
    code = (
        f"{_START}"
        "for step in range(10**6):\n"
        "    t.log_metrics({'train/loss': 1.0}, step=step)\n"
        "    print(step, flush=True); time.sleep(0.01)\n"
    )
    command = [sys.executable, "-c", code, sqlite.uri, str(spill)]
    with printed.open("wb") as out, subprocess.Popen(command, cwd=REPO, stdout=out) as process:
        try:
            wait_until(lambda: _known_steps(sqlite) > 50)
        finally:
            process.kill()
    steps = list(map(int, printed.read_text().split()))
    tracker = Tracker.start(sqlite, run_name="a", spill_path=spill)
    tracker.log_metrics({"train/loss": 1.0}, step=10**6)
    assert tracker.wait_for_run(60)
    tracker.close(timeout_s=60)
    (run,) = runs_of(sqlite, "a")
    found = steps_of(sqlite, run.info.run_id)
    # The last one may have been logged, and not yet printed.
    assert found in ([*steps, 10**6], [*steps, len(steps), 10**6])
    assert not spill.exists()


def _known_steps(config) -> int:
    if client_of(config).get_experiment_by_name(config.experiment) is None:
        return 0
    runs = runs_of(config, "a")
    return len(steps_of(config, runs[0].info.run_id)) if runs else 0


def test_a_full_disk_holds_nothing_up_and_loses_nothing(sqlite, tmp_path, caplog):
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        tracker = Tracker.start(sqlite, run_name="a", spill_path=disk / "tracking.jsonl")
        log_steps_at_once(tracker, 0, 500)
        assert tracker.wait_for_run(60)
        assert "the run's id is not kept" in caplog.text
        ballast.unlink()
        log_steps(tracker, 500, 600)
        tracker.close(timeout_s=60)
        assert steps_of(sqlite, tracker.run_id) == list(range(600))
        assert not (disk / "tracking.jsonl").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_process_that_forgets_to_close_still_writes(dead, tmp_path):
    spill = tmp_path / "tracking.jsonl"
    code = f"{_START}t.log_metrics({{'loss': 1.0}}, step=3)\n"
    subprocess.run([sys.executable, "-c", code, dead.uri, str(spill)], cwd=REPO, check=True)
    assert [record.kind for _, record in spilled(spill)] == ["metrics", "status"]


def test_secrets_appear_nowhere(sqlite, dead, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    spill = tmp_path / "run" / "tracking.jsonl"
    params = {"store": {"uri": f"s3://user:{SECRET}@host/x", "password": SECRET}, "lr": 1}
    for config in (dead, sqlite):
        tracker = Tracker.start(
            config,
            run_name="a",
            spill_path=spill,
            params=params,
            tags={"hf_token": SECRET, "note": f"key={SECRET}"},
        )
        tracker.log_text(f"the key is {SECRET}", "log.txt")
        tracker.log_dict(params, "config.json")
        if config is sqlite:
            tracker.wait_for_run(60)
        tracker.close(timeout_s=20)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    (run,) = runs_of(sqlite, "a")
    assert run.data.params == {"store.uri": "s3://***@host/x", "lr": "1"}
    assert run.data.tags["note"] == "key=***"
    assert "hf_token" not in run.data.tags


# Replaying.


def test_replay_reports_an_outage_and_keeps_the_file(dead, tmp_path):
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(dead, run_name="a", spill_path=spill)
    log_steps(tracker, 0, 3)
    tracker.close(timeout_s=20)
    content = spill.read_bytes()
    with pytest.raises(UserError, match="4 records are still in the file"):
        replay_job(ReplayConfig(replay=str(spill), tracking=dead))
    assert spill.read_bytes() == content


def test_replay_leaves_a_running_training_alone(dead, sqlite, tmp_path, caplog):
    spill = tmp_path / "tracking.jsonl"
    tracker = Tracker.start(dead, run_name="a", spill_path=spill)
    log_steps(tracker, 0, 3)
    wait_until(lambda: spill.exists() and spill.stat().st_size > 0)
    with pytest.raises(UserError, match="its training still runs"):
        replay(spill, dead)
    # Of a folder, all others are sent.
    other = tmp_path / "other" / "tracking-b.jsonl"
    other.parent.mkdir()
    record = Record(kind="metrics", time_ms=1, step=1, values={"train/loss": 1.0})
    identity = RunIdentity(experiment="lseg", run_name="b", run_key="b")
    other.write_bytes(to_line(identity, record))
    assert [place for place, _ in replay_all(str(tmp_path), sqlite)] == [str(other)]
    assert len(steps_of(sqlite, runs_of(sqlite, "b")[0].info.run_id)) == 1
    assert "its training still runs" in caplog.text
    tracker.close(timeout_s=20)


def test_the_replay_job_answers_a_missing_file_with_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "jobs/track.py", "--replay", str(tmp_path / "no.jsonl")],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no.jsonl: must be a spill file" in done.stderr
    assert "Traceback" not in done.stderr
