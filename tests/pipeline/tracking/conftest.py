"""MLflow stores in sqlite files, and an address where nothing listens."""

import shutil
import socket
from pathlib import Path

import pytest

from pipeline.tracking.tracker import Tracker, TrackingConfig


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def dead() -> TrackingConfig:
    """A URI where nothing listens: every call is refused at once."""
    return TrackingConfig(uri=f"http://127.0.0.1:{_free_port()}")


@pytest.fixture
def new_sqlite(tmp_path, monkeypatch) -> TrackingConfig:
    """A sqlite store that does not exist yet, seen from an empty current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return TrackingConfig().resolved(tmp_path / "store")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A sqlite file with MLflow's tables, which take seconds to create."""
    folder = tmp_path_factory.mktemp("empty")
    config = TrackingConfig(experiment="unused", uri=f"sqlite:///{folder}/mlflow.db")
    with Tracker.start(config, run_name="unused", spill_path=None) as tracker:
        assert tracker.wait_for_run(60)
    return folder / "mlflow.db"


@pytest.fixture
def sqlite(new_sqlite, empty_store) -> TrackingConfig:
    """A sqlite store without runs of the experiment, seen from an empty current folder."""
    database = Path(new_sqlite.uri.removeprefix("sqlite:///"))
    database.parent.mkdir()
    shutil.copy(empty_store, database)
    return new_sqlite
