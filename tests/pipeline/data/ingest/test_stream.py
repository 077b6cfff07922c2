"""The ingest on a real Ray: order, split among workers, restart, damage and S3."""

import concurrent.futures
import dataclasses
import re
import shutil
import time
import zlib

import numpy as np
import pytest
import ray.data

from pipeline.data.ingest import stream as stream_module
from pipeline.data.ingest.augment import load_crop
from pipeline.data.ingest.share import NodeShare
from pipeline.data.ingest.stream import (
    CropLoader,
    DataConfig,
    SampleReader,
    Timed,
    batches_of,
    build_mixture,
    node_stream,
    open_corpus,
)
from pipeline.data.pixels.checks import BadSample
from pipeline.data.shards.cache import ShardCache
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.mini_shards import DATASETS, NUM_TRAIN, MiniShards

BATCH_SIZE = 6
WEIGHTS = {"ade20k": 2.0, "cityscapes": 1.0, "coco_panoptic": 1.0}


def stream(
    mini: MiniShards,
    rows_per_batch: int,
    start: int,
    stop: int,
    batches_per_block: int = 4,
    num_workers: int = 1,
    num_loaders: int = 1,
    **settings,
) -> ray.data.Dataset:
    """Rows [start, stop) of the mixture of the tests, for workers that are all on one node."""
    config = mini.data(weights=WEIGHTS, **settings)
    corpus = open_corpus(config.shards, "train")
    mixture = build_mixture(corpus, config, BATCH_SIZE, seed=9)
    share = NodeShare(
        start=start,
        stop=stop,
        rows_per_batch=rows_per_batch,
        batches_per_block=batches_per_block,
        num_workers=num_workers,
        workers=tuple(range(num_workers)),
    )
    return node_stream(corpus, mixture, config, share, num_loaders, config.loader_cpus)


def batches(consumer, rows_per_batch: int) -> list[dict[str, np.ndarray]]:
    """All batches, copied out of Ray's memory."""
    return [
        {name: column.copy() for name, column in batch.items() if name != "node"}
        for batch in batches_of(consumer, rows_per_batch)
    ]


@pytest.fixture(scope="module")
def beginning(mini_shards) -> dict[str, np.ndarray]:
    """The first 69 rows of the mixture, which other streams are compared with."""
    return joined(batches(stream(mini_shards, 3, 0, 69), 3))


def positions(found: list[dict[str, np.ndarray]]) -> list[list[int]]:
    return [batch["t"].tolist() for batch in found]


def joined(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of all batches, in order."""
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_loaders_are_ahead_by_a_bounded_number_of_bytes(mini_shards, monkeypatch, tmp_path):
    # Blocks of 11 MiB, of which Ray's own part of the store would hold all.
    monkeypatch.setattr(stream_module, "LEAST_AHEAD_MIB", 0)
    monkeypatch.setattr(stream_module, "LOADED_AHEAD", 2)
    made = tmp_path / "made"

    class Counted(NodeShare):
        """In the loader's process it notes each block that is asked."""

        def block(self, number: int) -> range:
            with made.open("ab") as file:
                file.write(b".")
            return super().block(number)

    share = Counted(
        start=0, stop=360, rows_per_batch=3, batches_per_block=4, num_workers=1, workers=(0,)
    )
    assert share.num_blocks == 30
    config = mini_shards.data(weights=WEIGHTS)
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, crop_px=480))
    corpus = open_corpus(config.shards, "train")
    mixture = build_mixture(corpus, config, BATCH_SIZE, seed=9)
    data = node_stream(corpus, mixture, config, share, 1, config.loader_cpus)
    (part,) = data.streaming_split(1)
    blocks = iter(part.iter_batches(batch_size=None, prefetch_batches=0))
    assert next(blocks)["t"].shape == (1, 12)
    counted = [0, made.stat().st_size]
    while counted[-1] > counted[-2]:
        time.sleep(3)
        counted.append(made.stat().st_size)
    assert counted[-1] < 15
    # And it is no end: what was held back comes as the rest is used.
    assert sum(1 for _ in blocks) == 29


def test_batches_come_in_order_and_hold_what_the_plan_says(mini_shards, beginning):
    # From the middle: more than one task, and a last one that is shorter.
    found = batches(stream(mini_shards, 3, 12, 12 + 3 * 19, num_loaders=2), 3)
    assert positions(found) == [[t, t + 1, t + 2] for t in range(12, 12 + 57, 3)]
    rows = joined(found)
    # A run that restarts at row 12 gets what it would have got.
    assert same(rows, {name: column[12:] for name, column in beginning.items()})
    assert rows["image"].shape == (57, 48, 48, 3)
    assert rows["label"].shape == (57, 48, 48)
    assert (rows["image"].dtype, rows["label"].dtype) == (np.uint8, np.uint8)
    assert not rows["bad"].any()
    config = mini_shards.data(weights=WEIGHTS)
    corpus = open_corpus(config.shards, "train")
    assert corpus.sizes == dict.fromkeys(DATASETS, NUM_TRAIN)
    mixture = build_mixture(corpus, config, BATCH_SIZE, seed=9)
    reader = SampleReader(corpus)
    for position, t in enumerate(rows["t"].tolist()):
        (row,) = mixture.rows(t, t + 1)
        stored = reader.read_stored(mixture.datasets[row.dataset], row.sample)
        image, label = np.zeros((48, 48, 3), np.uint8), np.full((48, 48), 255, np.uint8)
        load_crop(stored.jpeg, stored.png, row.seed, config.augment, image, label)
        assert rows["crc32"][position] == zlib.crc32(stored.jpeg + stored.png)
        assert np.array_equal(rows["image"][position], image)
        assert np.array_equal(rows["label"][position], label)


@pytest.mark.parametrize("num_loaders", [1, 2])
def test_consumers_take_batches_in_turn(mini_shards, beginning, num_loaders):
    # 17 turns of three workers: at the end one has a block of two batches, and two have a batch.
    rows_per_batch, stop = 2, 34
    dataset = stream(mini_shards, rows_per_batch, 0, stop, 2, 3, num_loaders)
    consumers = dataset.streaming_split(3, equal=False)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(lambda c: batches(c, rows_per_batch), consumers))
    for rank, found in enumerate(taken):
        starts = range(rank * rows_per_batch, stop, 3 * rows_per_batch)
        assert positions(found) == [[t, t + 1] for t in starts]
    together = joined([batch for found in taken for batch in found])
    order = np.argsort(together["t"])
    # Batches of two rows, and of three.
    alone = {name: column[:stop] for name, column in beginning.items()}
    assert same({name: column[order] for name, column in together.items()}, alone)


def test_nothing_is_left_at_the_end(mini_shards):
    (consumer,) = stream(mini_shards, 3, 48, 48).streaming_split(1, equal=False)
    assert batches(consumer, 3) == []


def test_s3_gives_the_bytes_of_the_local_folder(mini_shards, beginning, s3_bucket, tmp_path):
    remote = open_storage(f"{s3_bucket}/prepared")
    for path in sorted(mini_shards.folder.rglob("*.*")):
        remote.write(path.relative_to(mini_shards.folder).as_posix(), path.read_bytes())
    settings = {"shards": remote.uri, "cache_dir": str(tmp_path), "num_loaders": 2}
    found = batches(stream(mini_shards, 3, 0, 24, **settings), 3)
    assert len(found) == 8
    assert same(joined(found), {name: column[:24] for name, column in beginning.items()})
    # A copy on this node that decays is noticed, and the bytes come from afar again.
    corpus = open_corpus(remote.uri, "train")
    shard = corpus.manifests["ade20k"].shards[0]
    cache = ShardCache(tmp_path, 1 << 30)
    assert cache.fetch(remote, f"ade20k/train/{shard.name}", shard)
    copy = tmp_path / f"{shard.sha256}.tar"
    copy.chmod(0o600)
    copy.write_bytes(bytes(shard.size))
    stored = SampleReader(corpus, cache).read_stored("ade20k", 0)
    assert stored == SampleReader(corpus).read_stored("ade20k", 0)
    assert not copy.exists()


@pytest.fixture
def damaged(mini_shards, tmp_path) -> MiniShards:
    """Shards in which the pictures of two ADE20K samples are not what they were."""
    folder = tmp_path / "shards"
    shutil.copytree(mini_shards.folder, folder)
    shard = open_corpus(str(folder), "train").manifests["ade20k"].shards[0]
    path = folder / "ade20k/train" / shard.name
    data = bytearray(path.read_bytes())
    first, second = shard.samples[:2]
    data[first.offset + 512 : first.offset + 1024] = bytes(512)  # The beginning of the JPEG.
    data[second.offset : second.offset + 512] = bytes(512)  # The header of a tar member.
    path.write_bytes(data)
    return dataclasses.replace(mini_shards, folder=folder)


def test_a_bad_sample_is_named_with_shard_and_key(damaged):
    corpus = open_corpus(str(damaged.folder), "train")
    shard = corpus.manifests["ade20k"].shards[0]
    for index in range(2):
        with pytest.raises(BadSample) as error:
            SampleReader(corpus).read("ade20k", index)
        assert shard.name in str(error.value)
        assert shard.samples[index].key in str(error.value)
    assert SampleReader(corpus).read("ade20k", 2)[0].ndim == 3


def test_bad_samples_are_marked_and_blank(damaged):
    rows = joined(batches(stream(damaged, 3, 0, 48, max_bad_share=0.5), 3))
    config = damaged.data(weights=WEIGHTS)
    mixture = build_mixture(open_corpus(config.shards, "train"), config, BATCH_SIZE, seed=9)
    plan = mixture.rows(0, 48)
    bad = [mixture.datasets[row.dataset] == "ade20k" and row.sample < 2 for row in plan]
    assert sum(bad) >= 4
    assert rows["bad"].tolist() == bad
    assert [bool(problem) for problem in rows["problem"]] == bad
    for problem in rows["problem"][bad]:
        assert re.search(r"ade20k-train-000000\.tar, key \S+: .*checksum", problem)
    assert (rows["label"][bad] == 255).all()
    assert (rows["image"][bad] == 0).all()
    assert (rows["image"][~rows["bad"]].reshape(-1, 48 * 48 * 3).max(1) > 0).all()


def test_a_loader_loads_the_rows_that_it_is_asked_for(mini_shards):
    config = mini_shards.data(weights=WEIGHTS)
    corpus = open_corpus(config.shards, "train")
    mixture = build_mixture(corpus, config, BATCH_SIZE, seed=9)
    rows = [row for t in (4, 6, 20) for row in mixture.rows(t, t + 2)]
    # Across the border of a global batch.
    assert CropLoader(corpus, mixture, config).load(rows)["t"].tolist() == [4, 5, 6, 7, 20, 21]


def test_memory_serves_again_when_nothing_refers_to_it(mini_shards):
    config = mini_shards.data(weights=WEIGHTS)
    corpus = open_corpus(config.shards, "train")
    mixture = build_mixture(corpus, config, BATCH_SIZE, seed=9)
    loader = CropLoader(corpus, mixture, config)
    parts = [mixture.rows(start, start + 3) for start in range(0, 30, 3)]
    # A consumer may keep a view of what it got: a row, a tensor.
    kept = [loader.load(rows)["image"][1:] for rows in parts[:2]]
    copies = [images.copy() for images in kept]
    places = set()
    for rows in parts:
        found = loader.load(rows)
        places.add(found["image"].__array_interface__["data"][0])
        # What an earlier crop left does not show where a later one is smaller than its square.
        assert same(found, CropLoader(corpus, mixture, config).load(rows))
    assert len(places) <= 2
    for images, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(images, copy)


def test_waiting_time_is_measured():
    timed = Timed(iter([{"t": 1}, {"t": 2}]))
    assert [batch["t"] for batch in timed] == [1, 2]
    assert 0 < timed.waited_s < 1


def test_without_shards_the_message_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"data\.shards: not set"):
        open_corpus("", "train")
    with pytest.raises(UserError, match=r"no manifest of split 'train'.*prepare_shards"):
        open_corpus(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_loaders": 0}, r"data\.num_loaders=0"),
        ({"loader_threads": 0}, r"data\.loader_threads=0"),
        ({"loader_cpus": 0.0}, r"data\.loader_cpus=0"),
        ({"max_bad_share": 1.5}, r"data\.max_bad_share=1\.5"),
        ({"max_bad_share": -0.1}, r"data\.max_bad_share=-0\.1"),
        ({"cache_gib": -1.0}, r"data\.cache_gib=-1"),
        ({"cache_gib": 0.0, "cache_dir": "/x"}, r"data\.cache_dir=/x: would be ignored"),
        ({"caps": {"idd": 0}}, r"data\.caps\.idd=0"),
        ({"weights": {"idd": 1.0}, "temperature": 0.5}, r"data\.temperature=0\.5: needs"),
        ({"weights": "equall"}, r"data\.weights='equall'.*did you mean 'equal'"),
    ],
)
def test_wrong_settings_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**values)
