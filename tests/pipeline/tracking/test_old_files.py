"""Files that the version before the journal (revision f9ab2ff) left: literal, and still sent."""

from pathlib import Path

import pytest

from jobs.track import ReplayConfig, replay_job
from pipeline.storage.open import open_storage
from pipeline.tracking.tracker import Tracker, TrackingConfig

# As it lay beside the checkpoints: an outage from the start, the last line torn by a crash.
SPILL = b"""\
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"tags", "time_ms": 1764322400000, "step": 0, "values": {"git_commit": "f9ab2ff"}}
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"params", "time_ms": 1764322400001, "step": 0, "values": {"train.lr": "0.004", "run.name": "mix7"}}
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"metrics", "time_ms": 1764322401000, "step": 1, "values": {"train/loss": 2.5, "train/lr": 0.004}}
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"metrics", "time_ms": 1764322402000, "step": 2, "values": {"train/loss": NaN, "train/lr": 0.004}}
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"text", "time_ms": 1764322402500, "step": 0, "artifact_path": "validation/step_2.txt", "text": \
"mIoU 12.5 \xc3\xa4"}
{"experiment": "lseg", "run_name": "mix7", "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c", "kind": \
"status", "time_ms": 1764322403000, "step": 0, "values": {"status": "KILLED"}}
{"experiment": "lseg", "run_name": "mix7", "run_k""".replace(b"\\\n", b"")
IDENTITY = b"""{
  "experiment": "lseg",
  "run_name": "mix7",
  "run_key": "4b1d0c6c1f5e4f3a9d0c1b2a3f4e5d6c",
  "run_id": "",
  "parent_run_id": ""
}
"""


@pytest.fixture
def server(tmp_path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/store/mlflow.db")


def _check(server: TrackingConfig, status: str, steps: list[int]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mix7", status)
    assert run.data.params == {"train.lr": "0.004", "run.name": "mix7"}
    assert run.data.tags["git_commit"] == "f9ab2ff"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == steps
    assert [m.timestamp for m in history][:2] == [1764322401000, 1764322402000]
    assert history[0].value == 2.5
    assert history[1].value != history[1].value
    text = Path(run.info.artifact_uri.removeprefix("file://")) / "validation/step_2.txt"
    assert text.read_text() == "mIoU 12.5 ä"


def test_an_old_file_is_replayed(server, tmp_path, capsys):
    path = tmp_path / "mix7" / "tracking-mix7.jsonl"
    path.parent.mkdir()
    path.write_bytes(SPILL)
    replay_job(ReplayConfig(replay=str(tmp_path / "mix7"), tracking=server))
    assert f"{path}: sent 6 records (4 metric values)" in capsys.readouterr().out
    _check(server, "KILLED", [1, 2])
    torn = path.with_suffix(".refused.jsonl")
    assert torn.read_bytes() == SPILL.splitlines()[-1] + b"\n"
    assert list(path.parent.iterdir()) == [torn]


def test_a_run_resumed_by_this_version_sends_an_old_file(server, tmp_path):
    path = tmp_path / "mix7" / "tracking-mix7.jsonl"
    path.parent.mkdir()
    path.write_bytes(SPILL)
    path.with_suffix(".run.json").write_bytes(IDENTITY)
    tracker = Tracker.start(server, run_name="mix7", spill_path=path)
    tracker.log_metrics({"train/loss": 1.5}, step=3)
    assert tracker.wait_for_run(60)
    tracker.close(timeout_s=60)
    _check(server, "FINISHED", [1, 2, 3])
    assert not path.exists()


def test_an_old_copy_in_s3_is_replayed_and_resumed(server, tmp_path, s3_bucket):
    storage = open_storage(s3_bucket)
    storage.write("mix7/tracking-mix7.jsonl", SPILL)
    storage.write("mix7/tracking-mix7.run.json", IDENTITY)
    path = tmp_path / "node" / "tracking-mix7.jsonl"
    tracker = Tracker.start(server, run_name="mix7", spill_path=path, copy_to=f"{s3_bucket}/mix7")
    assert tracker.wait_for_run(60)
    tracker.close(timeout_s=60)
    _check(server, "FINISHED", [1, 2])
    assert not storage.exists("mix7/tracking-mix7.jsonl")
    storage.write("mix7/tracking-mix7.jsonl", SPILL)
    replay_job(ReplayConfig(replay=s3_bucket, tracking=server))
    _check(server, "KILLED", [1, 2])  # Once more, and nothing is there twice.
    assert storage.read("mix7/tracking-mix7.refused.jsonl") == SPILL.splitlines()[-1] + b"\n"
