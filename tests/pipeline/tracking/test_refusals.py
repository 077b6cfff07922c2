"""What MLflow refuses for good is told with its remedy; an outage stays an outage."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from jobs.track import ReplayConfig, replay_job
from pipeline.errors import UserError
from pipeline.tracking.limits import MAX_EXPERIMENT_CHARS, folder_for
from pipeline.tracking.mlflow_run import client_of, make_private
from pipeline.tracking.preflight import check_server
from pipeline.tracking.refusals import MlflowRefused
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.mlflow_store import new_store


class Answering(BaseHTTPRequestHandler):
    """Gives one answer to whatever it is asked."""

    answer = (200, "")

    def do_GET(self) -> None:
        """Sends it."""
        status, body = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "You are not authenticated.", "asks for a login .*MLFLOW_TRACKING_USERNAME"),
        (401, '{"message": "Unauthorized"}', "asks for a login .*MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "forbids this user the experiment 'mine' .* granted"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "forbids this user"),
        (404, "<html>no such page</html>", "no MLflow answers at this address .*check the path"),
        (404, '{"detail": "Not Found"}', "no MLflow answers at this address"),
        (405, '{"detail": "Method Not Allowed"}', "no MLflow answers at this address"),
        (200, "<html>welcome to another service</html>", "no MLflow answers at this address"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}', "another name"),
    ],
)
def test_what_waiting_cannot_cure_is_refused_before_a_training(
    server, monkeypatch, status, body, message
):
    monkeypatch.setattr(Answering, "answer", (status, body))
    with pytest.raises(MlflowRefused, match=message) as caught:
        check_server(TrackingConfig(uri=server, experiment="mine"))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "broken"),
        (502, '{"error": "bad gateway"}'),
        (503, '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "soon"}'),
        (429, "too many"),
        (408, "too slow"),
    ],
)
def test_an_outage_refuses_nothing(server, monkeypatch, caplog, status, body):
    monkeypatch.setattr(Answering, "answer", (status, body))
    check_server(TrackingConfig(uri=server))
    assert "MLflow does not answer; it is tried again later" in caplog.text


def test_a_server_that_is_not_there_refuses_nothing(caplog):
    check_server(TrackingConfig(uri="http://127.0.0.1:9"))
    assert "MLflow does not answer" in caplog.text


def without_experiment(folder: Path, name: str) -> tuple[TrackingConfig, str]:
    """A store whose experiment was deleted, and the experiment's id."""
    from mlflow import MlflowClient

    uri = new_store(folder)
    client = MlflowClient(uri)
    number = client.create_experiment(name)
    client.delete_experiment(number)
    return TrackingConfig(uri=uri, experiment=name), number


def test_a_deleted_experiment_is_told_with_the_command_that_restores_it(tmp_path):
    from mlflow import MlflowClient

    config, number = without_experiment(tmp_path, "mine")
    remedy = rf"experiment=mine: was deleted in .*`mlflow experiments restore -x {number}`"
    with pytest.raises(MlflowRefused, match=remedy):
        check_server(config)
    MlflowClient(config.uri).restore_experiment(number)
    check_server(config)


def test_a_training_goes_on_and_says_so_and_the_replay_names_the_remedy(tmp_path, caplog, capsys):
    from mlflow import MlflowClient

    config, number = without_experiment(tmp_path, "mine")
    spill = tmp_path / "tracking-a.jsonl"
    tracker = Tracker.start(config, run_name="a", spill_path=spill)
    tracker.log_metrics({"train/loss": 1.0}, step=1)
    tracker.close(timeout_s=20)
    assert caplog.text.count("MLflow refuses this run; training continues") == 1
    assert "does not answer" not in caplog.text
    assert f"; first: tracking.experiment=mine: was deleted in {config.uri}" in caplog.text
    replay = ReplayConfig(replay=str(spill), tracking=config)
    with pytest.raises(UserError) as caught:
        replay_job(replay)
    told = str(caught.value)
    assert f"`mlflow experiments restore -x {number}`" in told
    assert told.endswith("mend that, then repeat this")
    assert "must answer and does not" not in told
    MlflowClient(config.uri).restore_experiment(number)
    replay_job(replay)
    assert not spill.exists()
    assert "sent" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"no database " * 100, b"SQLite format 3\0" + b"x" * 200])
def test_a_file_that_is_no_database_is_refused_at_once(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(MlflowRefused, match=r"mlflow\.db is no SQLite database \(.*another file"):
        check_server(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))


def test_a_database_in_a_place_that_cannot_be_made_is_refused():
    with pytest.raises(UserError, match=r"tracking\.uri=.*/proc/nope must be a folder"):
        check_server(TrackingConfig(uri="sqlite:////proc/nope/mlflow.db"))


def test_a_new_database_needs_no_mlflow(tmp_path):
    check_server(TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db"))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_new_database_is_its_owners_alone(tmp_path):
    path = tmp_path / "folder" / "mlflow.db"
    make_private(f"sqlite:///{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    os.chmod(path, 0o640)  # What the user has set stays.
    make_private(f"sqlite:///{path}")
    assert path.stat().st_mode & 0o777 == 0o640


def test_processes_take_turns_in_making_a_new_database(tmp_path, monkeypatch):
    lock = tmp_path / ".mlflow.db.lock"
    made = []

    def client(uri: str, registry_uri: str) -> str:
        with pytest.raises(Timeout), FileLock(lock, blocking=False, is_singleton=False):
            pass
        made.append(registry_uri)
        return uri

    monkeypatch.setattr("mlflow.MlflowClient", client)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert client_of(uri) == uri
    assert made == [uri]
    with FileLock(lock, blocking=False):
        pass
    monkeypatch.setattr("mlflow.MlflowClient", lambda uri, registry_uri: uri)
    assert client_of("http://127.0.0.1:9") == "http://127.0.0.1:9"


@pytest.mark.slow
def test_a_new_database_is_made_once_by_many_processes(tmp_path):
    code = (
        f"from pipeline.tracking.mlflow_run import client_of; client_of('sqlite:///{tmp_path}/m')"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for each in started:
        _, said = each.communicate()
        assert each.returncode == 0, said[-2000:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 501, "must have at most 500 characters, and has 501"),
        ("two\nlines", r"two\\nlines: must hold no line break"),
        ("\x1b[31mred", "no other invisible character"),
    ],
)
def test_a_name_that_mlflow_refuses_is_refused_by_the_settings(name, message):
    with pytest.raises(UserError, match=f"tracking.experiment=.*{message}"):
        TrackingConfig(experiment=name)


@pytest.mark.parametrize("name", ["x" * MAX_EXPERIMENT_CHARS, "../../up", "..", "a/b", "größe 2"])
def test_the_artifacts_of_any_experiment_have_a_folder_of_their_own(tmp_path, name):
    folder = folder_for(TrackingConfig(experiment=name).experiment)
    (tmp_path / folder).mkdir()
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve()
    assert folder_for("lseg") == "lseg"
    assert folder_for("a/b") != folder_for("a_b")
