"""Which MLflow run an evaluation writes into, above all for checkpoints that were moved."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.checkpoints.provenance import Provenance
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.record import Destination, destination, open_run
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker
from tests.support.mlflow_store import new_store

THEIRS, MINE = "sqlite:////theirs/mlflow.db", "sqlite:////mine/mlflow.db"


@pytest.fixture(autouse=True)
def no_address_in_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def trained_in(storage: Path | str, **tags: str) -> Provenance:
    settings: dict[str, Any] = {
        "run": {"name": "street", "storage": str(storage)},
        "tracking": {"uri": THEIRS, "experiment": "ours"},
    }
    return Provenance(("wall",), settings, tags)


def asked(checkpoint: Path | str, uri: str = "") -> EvaluateConfig:
    return EvaluateConfig(checkpoint=str(checkpoint), tracking=TrackingConfig(uri=uri))


def test_a_checkpoint_in_its_place_goes_on_with_its_run(tmp_path):
    run = tmp_path / "train" / "street"
    run.mkdir(parents=True)
    (run / "tracking-street.run.json").write_text("{}")
    for folder in ("step_00000008", "best_00000008"):
        found = destination(asked(run / folder), trained_in(tmp_path / "train"), tmp_path / "o")
        assert (found.tracking.uri, found.tracking.experiment) == (THEIRS, "ours")
        assert found.journal == run / "tracking-street.jsonl"
        assert not found.is_own
    # Through another name of the same folder.
    (tmp_path / "link").symlink_to(tmp_path / "train")
    linked = tmp_path / "link" / "street" / "step_00000008"
    assert (
        destination(asked(linked), trained_in(tmp_path / "train"), tmp_path).journal.parent == run
    )
    s3 = "s3://models/train"
    found = destination(asked(f"{s3}/street/step_00000008"), trained_in(s3), tmp_path)
    assert found.tracking.uri == THEIRS


@pytest.mark.parametrize("place", ["moved/street/step_00000008", "copy", "s3://mine/street/s"])
def test_a_copy_writes_only_where_its_caller_says(tmp_path, place, caplog):
    run = tmp_path / "train" / "street"
    run.mkdir(parents=True)
    (run / "tracking-street.run.json").write_text("{}")
    place = place if "://" in place else str(tmp_path / place)
    provenance = trained_in(tmp_path / "train", mlflow_run_id="abc")
    folder = tmp_path / "reports" / "x"
    with caplog.at_level(logging.INFO, "pipeline"):
        found = destination(asked(place), provenance, folder)
    assert found.tracking.uri == f"sqlite:///{tmp_path}/reports/mlflow.db"
    assert found.is_own
    assert found.run_id is None
    assert found.journal == folder / "tracking.jsonl"
    (line,) = caplog.messages
    assert f"does not lie in {run}" in line
    assert str(tmp_path / "reports") in line
    # On a server that the caller names the run may be known.
    found = destination(asked(place, MINE), provenance, folder)
    assert (found.tracking.uri, found.run_id) == (MINE, "abc")
    assert found.journal == folder / "tracking.jsonl"


def test_the_environment_counts_as_the_caller(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", MINE)
    for checkpoint in (tmp_path / "train" / "street" / "s", tmp_path / "copy"):
        found = destination(asked(checkpoint), trained_in(tmp_path / "train"), tmp_path / "o")
        assert found.tracking.uri == MINE


def test_a_checkpoint_without_a_run_has_one_of_its_own(tmp_path):
    found = destination(asked(tmp_path / "imported"), Provenance((), {}, {}), tmp_path / "o" / "x")
    assert found.is_own
    assert found.tracking.experiment == "lseg-evaluation"


def test_an_evaluation_leaves_the_status_of_the_training_run(tmp_path):
    tracking = TrackingConfig(uri=new_store(tmp_path))
    client = MlflowClient(tracking.uri)
    training = Tracker.start(tracking, run_name="street", spill_path=None)
    run_id = training.wait_for_run(60)
    assert run_id

    def evaluated(name: str) -> None:
        found = Destination(tracking, "street", tmp_path / f"{name}.jsonl", run_id)
        tracker = open_run(asked(tmp_path), found)
        tracker.log_metrics({f"eval/{name}/miou": 0.5}, step=3)
        tracker.close("FINISHED", 60.0)
        assert client.get_run(run_id).data.metrics[f"eval/{name}/miou"] == 0.5

    evaluated("under way")
    assert client.get_run(run_id).info.status == "RUNNING"
    training.close("FAILED")
    ended = client.get_run(run_id).info
    evaluated("afterwards")
    after = client.get_run(run_id).info
    assert (after.status, after.end_time) == ("FAILED", ended.end_time)


def test_an_evaluation_ends_a_run_that_it_had_to_make(tmp_path):
    tracking = TrackingConfig(uri=new_store(tmp_path))
    found = Destination(tracking, "street", tmp_path / "tracking.jsonl", "0" * 32)
    tracker = open_run(asked(tmp_path), found)
    run_id = tracker.wait_for_run(60)
    tracker.close("FINISHED", 60.0)
    assert run_id not in (None, "0" * 32)
    assert MlflowClient(tracking.uri).get_run(str(run_id)).info.status == "FINISHED"
