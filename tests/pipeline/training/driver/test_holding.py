"""One training at a time has a run: the second is refused, and a dead one is taken over."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from pipeline.storage import lease as leases
from pipeline.storage.open import open_storage
from pipeline.training.config import ClusterConfig, RunConfig, TrainMixConfig
from pipeline.training.driver import holding, launch
from pipeline.training.driver.holding import LOCK_NAME, RunHeld, held


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path) -> RunConfig:
    storage = tmp_path if request.param == "local" else request.getfixturevalue("s3_bucket")
    return RunConfig(name="mine", storage=str(storage))


def lock_of(**changes) -> bytes:
    """The lock of a training of another machine."""
    fields = {"token": "other", "host": "far", "pid": 7, "place": "elsewhere", "started": 0.0}
    fields |= {"since": "10:00", "until": "10:45", "beat": 0, "note": "raysubmit_1"}
    return json.dumps(fields | changes).encode()


def test_a_second_training_is_told_who_holds_the_run_and_until_when(run):
    with held(run), pytest.raises(RunHeld) as caught, held(run):
        pass
    told = str(caught.value)
    assert told.startswith(f"run.name=mine: is being trained in {run.storage} by process ")
    for word in (f"process {os.getpid()} on ", ", since 20", ", until 20", "give this run another"):
        assert word in told
    assert caught.value.exit_code == 2
    with held(run):  # It is released at the end.
        pass
    with held(RunConfig(name="other", storage=run.storage)):
        pass


def test_one_that_lives_on_another_machine_is_seen_by_its_beats(run, monkeypatch):
    storage, path = open_storage(run.storage), f"mine/{LOCK_NAME}"
    storage.write(path, lock_of())
    beats = iter(range(1, 99))

    def sleep(seconds: float) -> None:
        storage.write(path, lock_of(beat=next(beats)))

    monkeypatch.setattr(leases.time, "sleep", sleep)
    with pytest.raises(RunHeld, match=r"process 7 on far, Ray job raysubmit_1, since 10:00, until"):
        held(run).__enter__()


def test_a_killed_training_of_this_machine_is_taken_over_at_once(run, caplog):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    lock = lock_of(pid=child.pid, place=leases._host_id(), started=started)
    open_storage(run.storage).write(f"mine/{LOCK_NAME}", lock)
    with pytest.raises(RunHeld):
        held(run).__enter__()
    child.kill()
    child.wait()
    began = time.monotonic()
    with held(run):
        assert time.monotonic() - began < 20  # And not as long as a lock of elsewhere takes.
    assert "took over the lock of a run that is gone" in caplog.text


def test_training_holds_the_run_before_it_reads_what_is_there(tmp_path):
    run = RunConfig(name="mine", storage=str(tmp_path))
    # Without anything else of a plan: nothing else may be looked at.
    plan = SimpleNamespace(config=SimpleNamespace(run=run))
    with held(run), pytest.raises(RunHeld):
        launch.train(plan)


def test_a_training_that_lost_its_run_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "Lease", lambda *a, **k: leases.Lease(*a, beat_s=0.05, **k))
    run = RunConfig(name="mine", storage=str(tmp_path))
    lost = []
    with held(run) as lease:
        lease.on_loss(lambda: lost.append(True))
        (tmp_path / "mine" / LOCK_NAME).write_bytes(lock_of())
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.05)
    assert lost == [True]
    # It is the other's, who goes on.
    assert (tmp_path / "mine" / LOCK_NAME).read_bytes() == lock_of()


@pytest.mark.parametrize(
    ("cluster", "fewest"),
    [
        (ClusterConfig(num_workers=2, use_gpu=True), 2),
        (ClusterConfig(num_workers=4, min_workers=3, use_gpu=True), 3),
        (ClusterConfig(num_workers=2), 0),
    ],
)
def test_ray_is_asked_for_the_gpus_that_the_run_cannot_do_without(cluster, fewest):
    assert TrainMixConfig(cluster=cluster).fewest_gpus == fewest
