"""The node's cache of shards: what is in it, what is thrown out, and who may fetch at once."""

import hashlib
import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest

from pipeline.data.shards.cache import ShardCache, default_folder
from pipeline.data.shards.format import ShardRecord
from pipeline.errors import UserError
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage

SIZE = 1000


class Counted(LocalStorage):
    """A folder that counts how often a whole shard is read."""

    reads = 0

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        self.reads += 1
        return super()._read_range(path, offset, length)


def shard(root: Path, name: str) -> ShardRecord:
    """A shard of 1000 bytes that differ by name."""
    data = hashlib.shake_128(name.encode()).digest(SIZE)
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(data)
    return ShardRecord(name, SIZE, hashlib.sha256(data).hexdigest(), ())


def copies(cache: ShardCache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def test_a_shard_is_fetched_once_and_then_read_from_here(tmp_path):
    record = shard(tmp_path / "far", "a")
    storage = Counted(tmp_path / "far")
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    assert cache.read(storage, "a", record, 10, 20) is None  # The caller reads from afar.
    assert cache.wait(10)
    wanted = (tmp_path / "far/a").read_bytes()
    (tmp_path / "far/a").unlink()
    for offset in range(0, SIZE, 100):
        assert cache.read(storage, "a", record, offset, 100) == wanted[offset : offset + 100]
    assert storage.reads == 1
    other = ShardCache(tmp_path / "cache", 10 * SIZE)  # Another process of the node.
    assert other.read(storage, "a", record, 990, 10) == wanted[990:]


def test_bytes_that_are_not_the_manifests_are_never_kept(tmp_path):
    record = shard(tmp_path / "far", "a")
    (tmp_path / "far/a").write_bytes(bytes(SIZE))
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    assert not cache.fetch(open_storage(str(tmp_path / "far")), "a", record)
    assert [path.suffix for path in cache.folder.iterdir()].count(".lock") == 2
    assert not [p for p in cache.folder.iterdir() if p.suffix != ".lock"]


def test_room_is_made_at_the_cost_of_the_longest_unused(tmp_path):
    storage = open_storage(str(tmp_path / "far"))
    records = [shard(tmp_path / "far", name) for name in "abcd"]
    cache = ShardCache(tmp_path / "cache", 3 * SIZE, idle_s=50)
    for age, record in zip((300, 500, 10), records, strict=False):
        assert cache.fetch(storage, record.name, record)
        path = cache.folder / f"{record.sha256}.tar"
        os.utime(path, (time.time() - age, time.time() - age))
    assert cache.fetch(storage, "d", records[3])
    assert copies(cache) == {records[i].sha256 for i in (0, 2, 3)}  # b was unused for longest.
    assert cache.fetch(storage, "b", records[1])
    # Now all three are in use: a fourth is left where it is, rather than fetched in turn for ever.
    assert not cache.fetch(storage, "a", records[0])
    assert copies(cache) == {records[i].sha256 for i in (1, 2, 3)}
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 3 * SIZE


def test_a_shard_above_the_limit_stays_remote(tmp_path):
    record = shard(tmp_path / "far", "a")
    cache = ShardCache(tmp_path / "cache", SIZE - 1)
    assert cache.read(open_storage(str(tmp_path / "far")), "a", record, 0, 10) is None
    assert cache.wait(10)
    assert copies(cache) == set()


def _fetch_all(folder: Path, far: Path, records: list[ShardRecord], counts) -> None:
    storage = Counted(far)
    cache = ShardCache(folder, 4 * SIZE, idle_s=0)
    for turn in range(40):
        record = records[turn % len(records)]
        data = cache.read(storage, record.name, record, 0, SIZE)
        assert data in (None, (far / record.name).read_bytes())
        assert cache.wait(10)
    counts.put(storage.reads)


def test_concurrent_writers_neither_break_copies_nor_pass_the_limit(tmp_path):
    records = [shard(tmp_path / "far", name) for name in "abcdef"]
    context = multiprocessing.get_context("fork")
    counts = context.SimpleQueue()
    arguments = (tmp_path / "cache", tmp_path / "far", records, counts)
    workers = [context.Process(target=_fetch_all, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        sizes = []
        for path in (tmp_path / "cache").glob("*.tar"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        assert set(sizes) <= {SIZE}
        most = max(most, sum(sizes))
        time.sleep(0.001)
    assert [worker.exitcode for worker in workers] == [0] * 4
    left = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert left == {".tar", ".lock"}
    assert SIZE <= most
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*.tar")) <= 4 * SIZE
    for path in (tmp_path / "cache").glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def _fetch_on_a_full_disk(folder: Path, far: Path, record: ShardRecord, results) -> None:
    cache = ShardCache(folder, 10 * SIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE - 1, SIZE - 1))
    storage = LocalStorage(far)
    results.put((cache.read(storage, record.name, record, 0, 10), cache.wait(10)))
    results.put(cache.fetch(storage, record.name, record))


def test_a_disk_that_takes_no_more_costs_no_run(tmp_path):
    record = shard(tmp_path / "far", "a")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    arguments = (tmp_path / "cache", tmp_path / "far", record, results)
    process = context.Process(target=_fetch_on_a_full_disk, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert results.get() == (None, True)  # The caller reads from afar.
    assert results.get() is False
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_a_copy_that_cannot_be_read_is_as_good_as_none(tmp_path):
    record = shard(tmp_path / "far", "a")
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    (cache.folder / f"{record.sha256}.tar").mkdir()  # Opens, and fails when it is read.
    assert cache.read(LocalStorage(tmp_path / "far"), "a", record, 0, 10) is None


def test_what_a_killed_writer_left_is_removed(tmp_path):
    record = shard(tmp_path / "far", "a")
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    orphan = cache.folder / f"{'0' * 64}.partial"
    orphan.write_bytes(bytes(9500))  # Counted as used, it would leave no room.
    assert cache.fetch(open_storage(str(tmp_path / "far")), "a", record)
    assert not orphan.exists()


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"data\.cache_dir=.*alone.*LSEG_CACHE_DIR"):
        ShardCache(folder, SIZE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cannot be made"):
        ShardCache(tmp_path / "file/cache", SIZE)


def test_the_place_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LSEG_CACHE_DIR", "/scratch/lseg")
    assert default_folder() == Path("/scratch/lseg")
    monkeypatch.delenv("LSEG_CACHE_DIR")
    assert str(os.getuid()) in default_folder().name
