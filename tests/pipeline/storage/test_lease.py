import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.lease import Lease, _host_id
from pipeline.storage.open import open_storage

QUICK = {"expires_s": 1.5, "beat_s": 0.2}


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "out"))
    return open_storage(f"{request.getfixturevalue('s3_bucket')}/out")


def lock_of(**changes) -> bytes:
    """A lock as another process writes it."""
    mine = psutil.Process()
    fields = {"token": "other", "host": "far", "pid": mine.pid, "place": "another machine"}
    fields |= {"started": mine.create_time(), "since": "noon", "beat": 0}
    return json.dumps(fields | changes).encode()


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_lock_is_there_for_the_block_alone(storage):
    with Lease(storage, "lock") as lease:
        fields = json.loads(storage.read("lock"))
        assert fields["pid"] == os.getpid()
        lease.check()
    assert not storage.exists("lock")
    with Lease(storage, "lock"):
        assert storage.exists("lock")


def test_a_lock_of_which_the_answer_alone_got_lost_is_held(tmp_path, monkeypatch):
    link = os.link

    def lose_the_answer(*places: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        link(*places)
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(os, "link", lose_the_answer)
    with Lease(storage, "lock", **QUICK) as lease:
        lease.check()
        assert storage.exists("lock")
    assert not storage.exists("lock")


def test_a_living_process_on_this_machine_refuses_at_once(storage):
    began = time.monotonic()
    with Lease(storage, "lock"):
        with pytest.raises(UserError, match=rf"is writing there \(process {os.getpid()}"):
            Lease(storage, "lock").__enter__()
        assert storage.exists("lock")
    assert time.monotonic() - began < 10


def test_a_dead_process_on_this_machine_is_taken_over_at_once(storage, caplog):
    storage.write("lock", lock_of(place=_host_id(), pid=dead_pid()))
    began = time.monotonic()
    with Lease(storage, "lock"):
        assert json.loads(storage.read("lock"))["token"] != "other"
    assert time.monotonic() - began < 10
    assert "took over the lock of a run that is gone" in caplog.text


def test_another_process_with_the_number_of_a_dead_one_does_not_keep_its_lock(storage):
    storage.write("lock", lock_of(place=_host_id(), started=psutil.boot_time() - 1000))
    with Lease(storage, "lock"):
        assert json.loads(storage.read("lock"))["token"] != "other"


@pytest.mark.parametrize(
    "content",
    [lock_of(), b"", b"[1]", b"[" * 100_000],
    ids=["whole", "empty", "a list", "deep"],
)
def test_a_silent_lock_of_another_machine_expires(storage, content, caplog):
    storage.write("lock", content)
    began = time.monotonic()
    with Lease(storage, "lock", **QUICK):
        assert time.monotonic() - began >= QUICK["expires_s"]
        assert json.loads(storage.read("lock"))["pid"] == os.getpid()
    assert "took over" in caplog.text


def test_a_beating_lock_of_another_machine_refuses(storage):
    storage.write("lock", lock_of())
    ended = threading.Event()

    def beat() -> None:
        for number in range(1, 1000):
            if ended.wait(0.3):
                return
            storage.write("lock", lock_of(beat=number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"is writing there.*on far, since noon"):
            Lease(storage, "lock", **QUICK).__enter__()
    finally:
        ended.set()
        thread.join()
    assert json.loads(storage.read("lock"))["token"] == "other"


def test_the_lock_is_renewed(storage):
    with Lease(storage, "lock", **QUICK) as lease:
        time.sleep(2 * QUICK["expires_s"])
        assert json.loads(storage.read("lock"))["beat"] >= 3
        lease.check()


def test_a_run_that_lost_its_lock_stops_and_leaves_the_new_one(storage):
    with Lease(storage, "lock", **QUICK) as lease:
        storage.write("lock", lock_of())
        time.sleep(1)
        with pytest.raises(UserError, match="has taken over this output"):
            lease.check()
    assert storage.read("lock") == lock_of()


def _race(uri: str, start, results) -> None:
    start.wait()
    try:
        with Lease(open_storage(uri), "lock"):
            results.put(os.getpid())
            time.sleep(3)
    except UserError:
        results.put(None)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_gets_it(storage, stale):
    if stale:
        storage.write("lock", lock_of(place=_host_id(), pid=dead_pid()))
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    racers = [context.Process(target=_race, args=(storage.uri, start, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    start.set()
    got = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(pid is not None for pid in got) == 1
