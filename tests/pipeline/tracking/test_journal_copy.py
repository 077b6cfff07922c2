"""Copies of the journal in the storage of a run whose nodes come and go."""

import shutil
import time
from pathlib import Path

import pytest
from boto3.session import Session

from jobs.track import ReplayConfig, replay_job
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.tracking import journal_copy, sender
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.pipeline.tracking.recorded import log_steps, runs_of, spilled, steps_of, wait_until


def _outage(config: TrackingConfig, node: Path, storage: str, first: int, last: int) -> Tracker:
    """A process on a node that starts while MLflow is away, and logs some steps."""
    tracker = Tracker.start(
        config, run_name="a", spill_path=node / "tracking-a.jsonl", copy_to=f"{storage}/a"
    )
    log_steps(tracker, first, last)
    return tracker


def test_what_a_lost_node_had_kept_is_replayed_from_the_storage(
    sqlite, dead, tmp_path, s3_bucket, capsys, caplog
):
    storage = open_storage(s3_bucket)
    tracker = _outage(dead, tmp_path / "node", s3_bucket, 0, 5)
    # While it runs: the node may vanish without a word.
    wait_until(lambda: storage.exists("a/tracking-a.jsonl"))
    log_steps(tracker, 5, 9)
    tracker.close("FAILED", timeout_s=20)
    assert f"--replay {s3_bucket}/a/tracking-a.jsonl" in caplog.text
    assert storage.read("a/tracking-a.jsonl") == (tmp_path / "node/tracking-a.jsonl").read_bytes()

    with pytest.raises(UserError, match=rf"10 records are still in the file {s3_bucket}/a/"):
        replay_job(ReplayConfig(replay=s3_bucket, tracking=dead))
    replay_job(ReplayConfig(replay=s3_bucket, tracking=sqlite))
    assert f"{s3_bucket}/a/tracking-a.jsonl: sent 10 records" in capsys.readouterr().out
    (run,) = runs_of(sqlite, "a")
    assert run.info.status == "FAILED"
    assert steps_of(sqlite, run.info.run_id) == list(range(9))
    for place in (s3_bucket, f"{s3_bucket}/a/tracking-a.jsonl", str(tmp_path / "sqlite")):
        with pytest.raises(UserError, match=r"must be a spill file, or a folder that holds some"):
            replay_job(ReplayConfig(replay=place, tracking=sqlite))
    # The same lines on the node itself, found below a folder, are there only once.
    replay_job(ReplayConfig(replay=str(tmp_path), tracking=sqlite))
    assert steps_of(sqlite, runs_of(sqlite, "a")[0].info.run_id) == list(range(9))


def test_another_node_goes_on_with_the_run_and_what_was_left(sqlite, dead, tmp_path, s3_bucket):
    storage = open_storage(s3_bucket)
    first = _outage(dead, tmp_path / "one", s3_bucket, 0, 4)
    first.close("KILLED", timeout_s=20)
    shutil.rmtree(tmp_path / "one")
    second = _outage(sqlite, tmp_path / "two", s3_bucket, 4, 6)
    assert second.wait_for_run(60)
    second.close("KILLED", timeout_s=60)
    assert not storage.exists("a/tracking-a.jsonl")
    assert not (tmp_path / "two/tracking-a.jsonl").exists()
    third = _outage(sqlite, tmp_path / "three", s3_bucket, 6, 8)
    assert third.wait_for_run(60)
    third.close(timeout_s=60)
    (run,) = runs_of(sqlite, "a")
    assert run.info.status == "FINISHED"
    assert steps_of(sqlite, run.info.run_id) == list(range(8))


@pytest.mark.usefixtures("s3_endpoint")
def test_a_storage_that_fails_holds_nothing_up(dead, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal_copy, "_LAST_COPY_S", 0.4)
    tracker = _outage(dead, tmp_path, "s3://no-such-bucket-anywhere", 0, 3)
    begin = time.monotonic()
    tracker.close(timeout_s=20)
    assert time.monotonic() - begin < 20
    assert len(spilled(tmp_path / "tracking-a.jsonl")) == 4
    assert f"--replay {tmp_path}/tracking-a.jsonl" in caplog.text


def test_a_storage_that_answers_later_gets_its_copy(
    dead, tmp_path, s3_endpoint, monkeypatch, caplog
):
    monkeypatch.setattr(sender, "_COPY_EVERY_S", 0.2)
    tracker = _outage(dead, tmp_path, "s3://made-later", 0, 3)
    wait_until(lambda: "tracking-a.jsonl cannot be read" in caplog.text)
    Session().client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="made-later")
    storage = open_storage("s3://made-later")
    wait_until(lambda: storage.exists("a/tracking-a.jsonl"))
    tracker.close("KILLED", timeout_s=20)
    assert storage.exists("a/tracking-a.run.json")
    assert storage.read("a/tracking-a.jsonl") == (tmp_path / "tracking-a.jsonl").read_bytes()
