"""Where the tracking goes: what a user may write, and what is refused."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.tracker import Tracker, TrackingConfig

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queue_size": 0}, "tracking.queue_size=0: must be >= 1"),
        ({"experiment": " "}, "tracking.experiment='': must be a name"),
        ({"uri": f"http://me:{SECRET}@host"}, r"http://\*\*\*@host: must hold no credentials"),
        ({"uri": "htpp://host"}, "did you mean 'http'"),
        ({"uri": "./mlruns"}, "must start with one of"),
        ({"uri": "postgresql://db/mlflow"}, "set tracking.artifacts"),
    ],
)
def test_a_bad_config_is_a_user_error(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        TrackingConfig(**fields)
    assert SECRET not in str(caught.value)


def test_resolved_fills_in_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().resolved(tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (
        TrackingConfig(uri="sqlite:///a.db").resolved(Path("/x")).uri
        == f"sqlite:///{tmp_path}/a.db"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert TrackingConfig().resolved(tmp_path).uri == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host:5000")
    assert TrackingConfig().resolved(tmp_path).uri == ""


def test_a_tracker_without_any_uri_is_a_user_error(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"tracking\.uri=''"):
        Tracker.start(TrackingConfig(), run_name="a", spill_path=None)
