"""Curves of trials by the names of this version and of older ones."""

from typing import Any

from pipeline.sweep.config import SweepConfig
from pipeline.sweep.trial_runs import TrialRuns
from pipeline.tracking.config import TrackingConfig
from tests.support.mlflow_store import new_store


def test_a_curve_that_began_under_an_older_version_is_one(tmp_path):
    from mlflow import MlflowClient

    uri = new_store(tmp_path)
    client = MlflowClient(uri)
    experiment = client.create_experiment("lseg", (tmp_path / "artifacts").as_uri())
    parent = client.create_run(experiment).info.run_id
    tags: dict[str, Any] = {"mlflow.parentRunId": parent, "sweep.trial": "t1"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_metric(run_id, "val/idd/miou", 0.25, timestamp=1000, step=10)
    client.log_metric(run_id, "val_miou/idd", 0.5, timestamp=2000, step=20)
    client.log_metric(run_id, "val/miou", 0.75, timestamp=2000, step=20)
    tracking = TrackingConfig(uri=uri)
    runs = TrialRuns(
        SweepConfig(name="s", base="b", grid={"train.lr": [0.1]}, tracking=tracking), parent
    )
    found = runs.histories(runs.run_id("t1"), ("val/idd/miou", "val/miou", "val/none/miou"))
    assert found == {"val/idd/miou": [(10, 0.25), (20, 0.5)], "val/miou": [(20, 0.75)]}
