"""What the locks ask of an object store: of many conditional writes at once, one succeeds."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.local_s3 import local_s3
from pipeline.registry.locks import RETRAIN_LOCK, LockConfig, RetrainLocked, locked
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

WRITERS = 8
QUICK = LockConfig(expires_s=2.0, beat_s=0.25)


@pytest.fixture(
    scope="module",
    # The real server takes seconds to start.
    params=["local", "moto", pytest.param("seaweedfs", marks=pytest.mark.slow)],
)
def kind(request, tmp_path_factory) -> Iterator[str]:
    if request.param != "seaweedfs":
        yield request.param
        return
    with local_s3(tmp_path_factory.mktemp("server"), ("lock",)):
        yield request.param


@pytest.fixture
def store(kind: str, request, tmp_path: Path) -> str:
    if kind == "local":
        return str(tmp_path / "runs")
    return (
        f"{request.getfixturevalue('s3_bucket')}/runs" if kind == "moto" else f"s3://lock{tmp_path}"
    )


def at_once(write: Callable[[Storage, bytes], bool], uri: str) -> list[bytes]:
    """Contents of those writers that were told that they succeeded; each has its connection."""
    start = threading.Barrier(WRITERS)

    def one(number: int) -> bytes | None:
        storage, content = open_storage(uri), f"writer {number}".encode()
        storage.exists("elsewhere")
        start.wait()
        return content if write(storage, content) else None

    with ThreadPoolExecutor(WRITERS) as pool:
        return [content for content in pool.map(one, range(WRITERS)) if content]


def test_conditional_writes_have_one_winner(store):
    storage = open_storage(store)
    (first,) = at_once(lambda storage, content: storage.create("lock", content), store)
    assert storage.read("lock") == first
    (writer,) = at_once(lambda s, content: s.replace("lock", b"then " + content, first), store)
    second = b"then " + writer
    assert storage.read("lock") == second
    assert not storage.replace("lock", b"late", first)
    assert not storage.create("lock", b"late")
    assert storage.read("lock") == second


def test_the_loser_is_told_and_an_expired_lock_is_taken_over(store):
    storage = open_storage(store)
    with locked(storage, RETRAIN_LOCK, QUICK, "the re-training of lseg"):
        holder = json.loads(storage.read(RETRAIN_LOCK))
        with pytest.raises(RetrainLocked) as error:
            with locked(open_storage(store), RETRAIN_LOCK, QUICK, "the re-training of lseg"):
                raise AssertionError("two hold the lock")
        text = str(error.value)
        assert f"the re-training of lseg is locked by process {holder['pid']}" in text
        assert f"since {holder['since']}, until 20" in text
        assert error.value.exit_code == 75
    assert not storage.exists(RETRAIN_LOCK)
    # Another machine's, which nobody renews.
    storage.write(RETRAIN_LOCK, json.dumps(holder | {"place": "far", "token": "other"}).encode())

    def lose_it() -> None:
        with locked(storage, RETRAIN_LOCK, QUICK, "it") as lease:
            lease.check()
            assert json.loads(storage.read(RETRAIN_LOCK))["token"] not in ("other", holder["token"])
            storage.write(RETRAIN_LOCK, b'{"token": "third"}')
            time.sleep(4 * QUICK.beat_s)
            lease.check()

    with pytest.raises(RetrainLocked, match="another one has taken over: nothing was promoted"):
        lose_it()
    assert storage.read(RETRAIN_LOCK) == b'{"token": "third"}'
