"""The Ray that a job starts: who may use it, and what is said when it does not start."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from jobs import local_ray
from jobs.cli import start_ray
from pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

JOB = """
import os, subprocess, sys
sys.path.insert(0, {repository!r})
import ray  # Jobs import it before they know that they start one.
from jobs.cli import start_ray
start_ray(1)
know = ray.remote(lambda: (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])))
print("worker", ray.get(know.remote()))
address = ray.get_runtime_context().gcs_address
for given in ({{}}, {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}}):
    clean = {{key: value for key, value in os.environ.items() if not key.startswith("RAY_")}}
    done = subprocess.run([sys.executable, "intruder.py", address], env=clean | given, text=True,
                          capture_output=True, timeout=120)
    print("intruder", done.returncode, "AuthenticationError" in done.stderr, done.stdout)
print("home", os.listdir(os.environ["HOME"]))
"""

INTRUDER = """
import pathlib, sys
import ray
ray.init(address=sys.argv[1])
touch = ray.remote(lambda: pathlib.Path({proof!r}).touch())
ray.get(touch.remote(), timeout=30)
"""


@pytest.fixture
def clean_environment(monkeypatch):
    """Without Ray's variables, which come back afterwards, as does what is set meanwhile."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # The Ray of the other tests has its token in this process.
    monkeypatch.setattr("pipeline.ray_internals.read_environment_again", lambda: None)


def test_a_token_is_new_random_and_only_in_the_environment(clean_environment):
    local_ray.require_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(first) == 64
    local_ray.require_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first
    del os.environ["RAY_AUTH_TOKEN"]
    local_ray.require_token()
    assert os.environ["RAY_AUTH_TOKEN"] != first


@pytest.mark.parametrize(
    "given",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-user"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/of/the/user"},
    ],
)
def test_what_the_user_has_set_stays(clean_environment, monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    local_ray.require_token()
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    assert {name: os.environ[name] for name in names if name in os.environ} == given


@pytest.mark.slow
def test_a_stranger_without_the_token_runs_no_task_in_a_local_ray(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "home").mkdir()
    (tmp_path / "job.py").write_text(JOB.format(repository=str(REPOSITORY)))
    (tmp_path / "intruder.py").write_text(INTRUDER.format(proof=str(proof)))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    clean |= {"HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "job.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "worker ('token', 64)" in done.stdout
    assert done.stdout.count("intruder 1 True") == 2, done.stdout + done.stderr
    assert not proof.exists()
    assert "auth_token" not in str(list((tmp_path / "home").rglob("*")))


@pytest.fixture
def idle_machine(monkeypatch, clean_environment):
    """No Ray runs, and nothing waits between attempts."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(local_ray, "_PAUSE_S", 0.0)
    monkeypatch.setattr("jobs.cli._cluster_resources", lambda needed: needed)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_start_that_takes_too_long_is_tried_again_with_a_word(idle_machine, monkeypatch, caplog):
    calls = []

    def init(**settings):
        # A thread of Ray Data that an earlier test has left may start a Ray too, without settings.
        if settings:
            calls.append(settings)
        if len(calls) < 3:
            raise Exception("The current node timed out during startup.\nMore of it")

    monkeypatch.setattr(ray, "init", init)
    start_ray(2)
    assert len(calls) == 3
    assert calls[0] == calls[2]
    assert [record.message[:70] for record in caplog.records] == [
        "Ray did not start (Exception: The current node timed out during startu"
    ] * 2
    assert caplog.records[1].message.endswith("is the machine busy? Trying again, 3 of 3")


def test_a_ray_that_never_starts_is_one_message_and_leaves_no_process(idle_machine, monkeypatch):
    left = []

    def init(**settings):
        left.append(subprocess.Popen(["sleep", "60"]))
        raise RuntimeError("Failed to start GCS.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"Ray: did not start on this machine at 3 attempts \(the "):
        start_ray(2)
    assert [psutil.pid_exists(process.pid) for process in left] == [False] * 3


def test_a_mistake_of_ours_in_the_start_is_no_busy_machine(idle_machine, monkeypatch):
    def init(**settings):
        raise TypeError("no such argument")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(TypeError):
        start_ray(2)
