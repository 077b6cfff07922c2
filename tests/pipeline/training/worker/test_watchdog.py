"""A worker that makes no step says where it is, and ends; one that moves is left alone."""

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.training.config import ClusterConfig, RunConfig
from pipeline.training.worker import watchdog
from pipeline.training.worker.watchdog import EXIT_CODE, Watchdog

STUCK_S = 0.4


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The exit codes with which the process would have ended."""
    monkeypatch.setattr(watchdog, "_FOR_THE_OTHERS_S", 0.05)
    return []


def wait_here_in_vain(ended: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)


def test_stacks_are_stored_before_the_worker_ends(tmp_path, ended):
    watch = Watchdog(RunConfig(name="mine", storage=str(tmp_path)), STUCK_S, 3, ended.append)
    release = threading.Event()
    threading.Thread(target=release.wait, name="helper", daemon=True).start()
    with watch:
        watch.beat()
        wait_here_in_vain(ended)
    release.set()
    assert ended == [EXIT_CODE]
    text = (tmp_path / "mine/stuck/worker-3.txt").read_text()
    assert text.startswith("worker 3 on node ")
    assert "(0.4 are allowed: cluster.stuck_s)" in text
    # The main thread comes first, with the line on which it waits.
    assert text.index("thread MainThread:") < text.index("thread helper:")
    assert "in wait_here_in_vain" in text


def test_a_storage_that_fails_holds_nobody_back(tmp_path, ended, caplog):
    (tmp_path / "file").write_text("no folder")
    run = RunConfig(name="mine", storage=str(tmp_path / "file"))
    with Watchdog(run, STUCK_S, 0, ended.append) as watch:
        watch.beat()
        wait_here_in_vain(ended)
    assert ended == [EXIT_CODE]
    assert "in wait_here_in_vain" in caplog.text


def test_a_worker_that_reaches_its_end_after_all_is_not_ended(tmp_path, ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_FOR_THE_OTHERS_S", 60)
    report, deadline = tmp_path / "mine/stuck/worker-0.txt", time.monotonic() + 20
    run = RunConfig(name="mine", storage=str(tmp_path))
    with Watchdog(run, STUCK_S, 0, ended.append) as watch:
        watch.beat()
        while not report.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert report.exists()
    assert ended == []


def test_a_first_step_that_never_ends_is_ended_too(tmp_path, ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_FIRST_STEP_S", 2 * STUCK_S)
    began = time.monotonic()
    with Watchdog(RunConfig(name="mine", storage=str(tmp_path)), STUCK_S, 0, ended.append):
        wait_here_in_vain(ended)
    assert ended == [EXIT_CODE]
    assert time.monotonic() - began > 2 * STUCK_S


def test_a_worker_tells_its_stacks_before_those_that_wait_for_it_fail():
    for_one, for_two = ClusterConfig(stuck_s=900), ClusterConfig(num_workers=2, stuck_s=900)
    assert (for_one.watch_s, for_two.watch_s) == (900, 0.8 * for_two.collective_timeout_s)
    assert ClusterConfig(num_workers=2).watch_s < ClusterConfig().collective_timeout_s
    assert replace(for_two, collective_timeout_s=1800).watch_s == 900
    assert replace(for_two, stuck_s=0).watch_s == 0
    with pytest.raises(UserError, match=r"cluster\.collective_timeout_s=inf: must be above 0, and"):
        ClusterConfig(collective_timeout_s=float("inf"))


@pytest.mark.parametrize("stuck_s", [STUCK_S, 0])
def test_a_worker_that_moves_or_ended_is_left_alone(tmp_path, ended, stuck_s: float):
    with Watchdog(RunConfig(name="mine", storage=str(tmp_path)), stuck_s, 0, ended.append) as watch:
        time.sleep(2 * STUCK_S)  # The first step may take longer.
        for _ in range(40):
            watch.beat()
            time.sleep(STUCK_S / 20)
    time.sleep(2 * STUCK_S)
    assert ended == []
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow  # A process that imports Ray Train.
def test_a_call_that_lets_no_other_thread_run_is_ended_too(tmp_path):
    script = f"""
        import ctypes
        from pipeline.training.config import RunConfig
        from pipeline.training.worker.watchdog import Watchdog
        def holds_the_interpreter():
            ctypes.PyDLL(None).sleep(100)
        watch = Watchdog(RunConfig(name="mine", storage={str(tmp_path)!r}), 1.0, 0)
        watch.__enter__()
        watch.beat()
        import time; time.sleep(0.5)
        holds_the_interpreter()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    repository = Path(__file__).resolve().parents[4]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "in holds_the_interpreter" in done.stderr
