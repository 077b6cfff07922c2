"""Stored samples that cannot be trusted: each is a bad sample, and the others are read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.stream import CropLoader, DataConfig, build_mixture
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import encode_label
from pipeline.data.shards.corpus import SampleReader, open_corpus
from pipeline.data.shards.format import EncodedSample, Manifest, ShardWriter
from pipeline.data.taxonomy import universal
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.odd_jpegs import ODD_SAMPLINGS, sampled_jpeg
from tests.support.tiny_roots import encode, noise

NUM = 4
HUGE = 1 << 70


def write_shards(root: Path, jpeg: bytes, label: np.ndarray) -> Path:
    """Shards of four samples, the first of which is given; returns the manifest's path."""
    storage, classes = open_storage(str(root)), universal()
    size = label.shape
    with ShardWriter(storage, "idd", "train", 0) as writer:
        for number in range(NUM):
            data = jpeg if number == 0 else encode(noise(*size, number), ".jpg")
            ids = label if number == 0 else np.full(size, number, np.uint8)
            meta = {"classes": [1]}
            sides = {"height": size[0], "width": size[1]}
            writer.write(EncodedSample(f"s{number}", data, encode_label(ids), meta, **sides))
        shard = writer.finish()
    pixels = (1,) * len(classes.classes)
    manifest = Manifest(
        2, "idd", "train", classes.name, classes.fingerprint, "", {}, (shard,), pixels, ()
    )
    storage.write("idd/train/manifest.json", manifest.to_json().encode())
    return root / "idd/train/manifest.json"


def problems(root: Path) -> list[str]:
    """What a loader of the training says of a batch of every sample, sorted."""
    config = DataConfig(shards=str(root), augment=AugmentConfig(crop_px=16, base_px=32))
    corpus = open_corpus(config.shards, "train")
    mixture = build_mixture(corpus, config, NUM, seed=1)
    batch = CropLoader(corpus, mixture, config).load(mixture.rows(0, NUM))
    for image, label, problem in zip(batch["image"], batch["label"], batch["problem"], strict=True):
        assert bool((label != 255).any() or image.any()) == (not problem)
    return sorted(filter(None, batch["problem"].tolist()))


SMALL = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize("name", ODD_SAMPLINGS)
def test_odd_samplings_that_lie_in_shards_are_read(tmp_path, name: str):
    write_shards(tmp_path, sampled_jpeg(30, 20, ODD_SAMPLINGS[name], 1), SMALL)
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("jpeg", "label", "reason"),
    [
        (b"", SMALL, "the jpg is empty"),
        (b"\xff\xd8\xff\xd9", SMALL, "the jpg does not decode"),
        (sampled_jpeg(30, 20, ((3, 1), (2, 1), (1, 1)), 1), SMALL, "does not decode"),
        (encode(noise(20, 30, 1), ".jpg"), SMALL + np.uint8(230), "ids 230: "),
    ],
    ids=["empty", "no image", "fractions", "ids"],
)
def test_one_bad_sample_is_named_and_the_others_are_read(tmp_path, jpeg, label, reason):
    write_shards(tmp_path, jpeg, label)
    (problem,) = problems(tmp_path)
    assert "idd-train-000000.tar, key s0" in problem
    assert reason in problem
    with pytest.raises(BadSample, match="key s0"):
        SampleReader(open_corpus(str(tmp_path), "train")).read("idd", 0)


@pytest.mark.parametrize("place", [(-512, 1024), (0, 0), (0, -5), (HUGE, 512), (0, HUGE), (512, 1)])
def test_places_are_checked_before_they_are_used(tmp_path, place: tuple[int, int]):
    path = write_shards(tmp_path, encode(noise(20, 30, 1), ".jpg"), SMALL)
    values = json.loads(path.read_text())
    values["shards"][0]["samples"][0][1:3] = place
    path.write_text(json.dumps(values))
    (problem,) = problems(tmp_path)
    assert "key s0" in problem


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder"])
def test_what_lies_in_place_of_a_shard_blocks_nothing(tmp_path, kind: str):
    shard = write_shards(tmp_path, encode(noise(20, 30, 1), ".jpg"), SMALL).with_name(
        "idd-train-000000.tar"
    )
    shard.unlink()
    make: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(shard),
        "loop": lambda: shard.symlink_to(shard.name),
        "device": lambda: shard.symlink_to("/dev/zero"),
        "folder": shard.mkdir,
    }
    make[kind]()
    found = problems(tmp_path)
    assert len(found) == NUM
    words = ("no such shard", "cut short", "too many levels of symbolic links")
    assert all(any(word in problem for word in words) for problem in found)


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["shards"][0]["samples"][0].__setitem__(1, float("inf")),
        lambda v: v["shards"][0].__setitem__("size", float("nan")),
        lambda v: v["shards"][0].__setitem__("samples", None),
        lambda v: v.__setitem__("shards", [None]),
        lambda v: v.__setitem__("class_pixels", [HUGE] * 194),
        lambda v: v.__setitem__("class_pixels", [-1] * 194),
        lambda v: v.__setitem__("class_pixels", [1] * 193),
        lambda v: v.__setitem__("taxonomy", None),
        lambda v: v.__setitem__("settings", 5),
        lambda v: v.__setitem__("left_out", 5),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, edit):
    path = write_shards(tmp_path, encode(noise(20, 30, 1), ".jpg"), SMALL)
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest\.json: damaged") as caught:
        open_corpus(str(tmp_path), "train")
    assert "\n" not in str(caught.value)


def test_a_manifest_of_many_levels_is_one_line(tmp_path):
    path = write_shards(tmp_path, encode(noise(20, 30, 1), ".jpg"), SMALL)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not a manifest"):
        open_corpus(str(tmp_path), "train")
