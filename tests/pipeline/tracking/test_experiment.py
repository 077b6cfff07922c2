"""An experiment's description and saved view, which a person may replace."""

import json

from pipeline.tracking.experiment import NOTE_TAG
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.recorded import client_of


def start(config) -> None:
    with Tracker.start(config, run_name="a", spill_path=None) as tracker:
        assert tracker.wait_for_run(60)


def test_a_new_experiment_says_how_its_runs_are_found_and_leads_to_a_view_of_them(sqlite):
    start(sqlite)
    client = client_of(sqlite)
    experiment = client.get_experiment_by_name("lseg")
    note, saved = experiment.tags[NOTE_TAG], experiment.tags["mlflow.sharedViewState.lseg-runs"]
    assert f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=lseg-runs" in note
    assert "metrics.`val/miou`" in json.loads(json.loads(saved)["state"])["selectedColumns"]


def test_an_older_experiment_gets_one_and_what_a_person_wrote_stays(sqlite):
    client = client_of(sqlite)
    number = client.create_experiment("lseg")
    start(sqlite)
    assert "dataset.digest" in client.get_experiment(number).tags[NOTE_TAG]
    client.set_experiment_tag(number, NOTE_TAG, "mine")
    start(sqlite)
    assert client.get_experiment(number).tags[NOTE_TAG] == "mine"
