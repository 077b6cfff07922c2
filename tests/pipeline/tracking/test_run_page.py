"""What a run's page shows, on a real store: each record is sent twice, as after a crash."""

import io
import json
import time

import pytest
from PIL import Image

from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_run import MlflowRun
from pipeline.tracking.page_records import InputDataset, LoggedCheckpoint
from pipeline.tracking.records import Record, RunIdentity, now_ms, to_line
from pipeline.tracking.replay import replay
from pipeline.tracking.run_page import models_of, outputs_of
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.recorded import client_of, runs_of, spilled
from tests.support.mlflow_process import mlflow_is

DATA = InputDataset(
    name="ade20k",
    digest="0123456789abcdef",
    source="s3://me:hunter2@bucket/shards/ade20k/train/manifest.json",
    context="train",
    profile={"num_rows": 7, "secret_key": "hunter2"},
)


def png(side: int = 300) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def best(address: str, step: int, miou: float) -> LoggedCheckpoint:
    return LoggedCheckpoint(
        name="lseg",
        address=address,
        step=step,
        tags={"weights": f"w{step}"},
        params={"backbone": "vit"},
        metrics={"val/miou": miou, "val/ade20k/miou": miou, "val/idd/miou": float("nan")},
        signature={"inputs": '[{"type": "binary", "name": "image", "required": true}]'},
        digests={"ade20k": "feed"},
    )


def page_of(tracker: Tracker) -> None:
    """Logs one of each kind."""
    tracker.log_inputs([DATA])
    tracker.log_picture("overlays", png(), step=4)
    tracker.log_table(["class", "IoU"], [["sky", 0.5], ["road", float("nan")]], "classes.json")
    tracker.log_model(best("/runs/a/best_4", 4, 0.25))


def resent(config, path) -> None:
    """Sends the lines of a journal twice."""
    for _ in range(2):
        lines = path.read_bytes()
        assert replay(path, config).refused == 0
        path.write_bytes(lines)


def test_an_outage_and_a_second_sending_make_nothing_twice(sqlite, dead, tmp_path):
    journal = tmp_path / "tracking-a.jsonl"
    with Tracker.start(dead, run_name="a", spill_path=journal) as tracker:
        page_of(tracker)
        time.sleep(0.002)
        tracker.log_model(best("/runs/a/best_8", 8, 0.5))
        tracker.close(timeout_s=0.1)
    assert {record.kind for _, record in spilled(journal)} >= {"inputs", "picture", "table"}
    assert b"hunter2" not in journal.read_bytes()
    resent(sqlite, journal)

    (run,), client = runs_of(sqlite, "a"), client_of(sqlite)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("ade20k", "0123456789abcdef")
    assert given.dataset.source_type == "s3"
    assert json.loads(given.dataset.profile) == {"num_rows": 7}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "train")]
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert [path.rpartition("+")[2] for path in images] == ["compressed.webp", "0.png"]
    assert all(path.startswith("images/overlays+step+4+timestamp+") for path in images)
    assert run.data.tags["mlflow.loggedImages"] == "True"
    tables = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert tables == [{"path": "classes.json", "type": "table"}]
    (model,) = models_of(client, run)
    assert model.tags["checkpoint"] == "/runs/a/best_8"
    # MLflow gives the links in no order; that of the model that was beaten stays.
    steps = {output.model_id: output.step for output in outputs_of(run)}
    assert sorted(steps.values()) == [4, 8]
    assert steps[model.model_id] == 8


def test_the_table_and_the_source_are_such_as_mlflow_reads(sqlite):
    import mlflow
    from mlflow.models import Model

    with Tracker.start(sqlite, run_name="a", spill_path=None) as tracker:
        page_of(tracker)
        assert tracker.wait_for_run(60)
    (run,), client = runs_of(sqlite, "a"), client_of(sqlite)
    with mlflow_is(sqlite.uri):
        table = client.load_table(run.info.experiment_id, "classes.json", [run.info.run_id])
    assert table["class"].tolist() == ["sky", "road"]
    assert table["IoU"].isna().tolist() == [False, True]
    source = mlflow.data.get_source(run.inputs.dataset_inputs[0])
    assert source.to_dict()["uri"] == "s3://***@bucket/shards/ade20k/train/manifest.json"
    (model,) = models_of(client, run)
    signature = Model.load(model.artifact_location.removeprefix("file://")).signature
    assert signature is not None
    assert signature.inputs.input_names() == ["image"]


def test_the_best_model_takes_the_place_of_the_one_before_but_not_of_a_registered_one(sqlite):
    client = client_of(sqlite)
    with Tracker.start(sqlite, run_name="a", spill_path=None) as tracker:
        tracker.log_model(best("/runs/a/best_4", 4, 0.25))
        tracker.log_model(best("/runs/a/best_8", 8, 0.5))
        assert tracker.wait_for_run(60)
    (run,) = runs_of(sqlite, "a")
    (model,) = models_of(client, run)
    assert (model.tags["checkpoint"], model.tags["step"]) == ("/runs/a/best_8", "8")
    shown = {(metric.key, metric.dataset_name): metric.value for metric in model.metrics}
    assert shown == {("val/miou", None): 0.5, ("val_miou/ade20k", "ade20k"): 0.5}

    client.delete_logged_model_tag(model.model_id, "mlflow.model.isExternal")  # As registering.
    with Tracker.start(sqlite, run_name="a", spill_path=None, run_id=run.info.run_id) as tracker:
        tracker.log_model(best("/runs/a/best_12", 12, 0.75))
    addresses = [each.tags["checkpoint"] for each in models_of(client, run)]
    assert addresses == ["/runs/a/best_12", "/runs/a/best_8"]


def test_a_picture_too_large_for_the_journal_is_left_out(sqlite, caplog):
    with Tracker.start(sqlite, run_name="a", spill_path=None) as tracker:
        tracker.log_picture("overlays", b"x" * 300_000, step=1)
    assert "picture overlays has 300000 bytes: left out" in caplog.text
    (run,) = runs_of(sqlite, "a")
    assert client_of(sqlite).list_artifacts(run.info.run_id) == []


class _Old:
    """A server that lacks a call, or that is away."""

    def __init__(self, error: Exception, answers: bool) -> None:
        self._error, self._answers = error, answers
        self.tries = 0

    def log_inputs(self, *_) -> None:
        self.tries += 1
        raise self._error

    def get_run(self, _) -> None:
        if not self._answers:
            raise self._error


@pytest.mark.parametrize(
    ("status", "answers", "waits"),
    [(404, True, False), (404, False, True), (503, False, True), (500, True, False)],
)
def test_what_a_server_fails_with_holds_nothing_back(tmp_path, monkeypatch, status, answers, waits):
    """It is too old for the call, or fails with this alone; where it is away, all waits for it."""
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr("pipeline.tracking.mlflow_run._PAUSES_S", (0.01, 0.02))
    text = f"API request to endpoint /x failed with error code {status} != 200"
    identity = RunIdentity(experiment="e", run_name="a", run_key="k", run_id="r")
    run = MlflowRun("http://127.0.0.1:1", identity)
    run._client = _Old(MlflowException(text), answers)
    path = tmp_path / "tracking.jsonl"
    record = Record(kind="inputs", time_ms=now_ms(), values=DATA.values())
    path.write_bytes(to_line(identity, record))
    journal = Journal(path)
    journal.open()
    delivery = Delivery(journal, "http://127.0.0.1:1")
    delivery.runs["k"] = run
    if waits:
        with pytest.raises(MlflowException):
            delivery.send()
    else:
        delivery.send()
    assert delivery.counts.refused == (0 if waits else 1)
    # Such a record has one chance: where the server works otherwise, it is tried again first.
    assert run._client.tries == (3 if status == 500 else 1)
    journal.close()
