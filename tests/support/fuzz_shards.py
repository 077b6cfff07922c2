"""Readers of shards and their manifests, as targets of the fuzzer."""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import encode_label
from pipeline.data.shards.corpus import Corpus, SampleReader
from pipeline.data.shards.format import (
    EncodedSample,
    Manifest,
    SampleRecord,
    ShardError,
    ShardWriter,
    parse_sample,
)
from pipeline.data.shards.union import union_of
from pipeline.data.taxonomy import universal
from pipeline.errors import UserError
from pipeline.storage.local import LocalStorage
from tests.support.archive_mutators import members, tar_headers
from tests.support.fuzz_target import Target
from tests.support.picture_mutators import jpeg_segments, png_chunks
from tests.support.text_mutators import json_fields
from tests.support.tiny_roots import noise


def write_shard(folder: Path) -> Manifest:
    """A small shard and its manifest below a folder."""
    classes, storage = universal(), LocalStorage(folder)
    rng = np.random.default_rng(0)
    with ShardWriter(storage, "mini", "train", 0) as writer:
        for number in range(3):
            ids = rng.integers(0, 190, (24, 32), np.uint8)
            jpeg = cv2.imencode(".jpg", noise(24, 32, number))[1].tobytes()
            meta = {"dataset": "mini", "source": f"{number}.jpg", "size": [24, 32]}
            png = encode_label(ids)
            writer.write(
                EncodedSample(
                    f"s{number}", jpeg, png, meta, png if number else None, height=24, width=32
                )
            )
        record = writer.finish()
    counts = (1,) * len(classes.classes)
    made = Manifest(
        2, "mini", "train", classes.name, classes.fingerprint, "0" * 16, {"short_side_px": 1080},
        (record,), counts, (("x.jpg", "no label"),), ("a note",),
    )  # fmt: skip
    storage.write("mini/train/manifest.json", made.to_json().encode())
    return made


def manifest(folder: Path) -> list[Target]:
    """Manifests, alone and as the index of a shard that is whole."""
    made = write_shard(folder / "shards")

    def read(data: bytes) -> None:
        found = Manifest.from_json(data)
        assert len(found.fingerprint) == 16
        assert found.num_samples >= 0
        assert found.size is not None
        union_of({"mini": found})

    def read_samples(data: bytes) -> None:
        found = Manifest.from_json(data)
        corpus = Corpus(str(folder / "shards"), "train", {"mini": found})
        reader = SampleReader(corpus)
        for index in range(min(3, found.num_samples)):
            with suppress(BadSample):
                reader.read("mini", index)

    files = [made.to_json().encode()]
    return [
        Target("manifest", files, read, (UserError,), [json_fields]),
        Target("manifest and shard", files, read_samples, (UserError,), [json_fields]),
    ]


def sample(folder: Path) -> list[Target]:
    """The bytes of a sample in a shard whose manifest knows no checksum."""
    made = write_shard(folder / "shards")
    tar = (folder / "shards/mini/train" / made.shards[0].name).read_bytes()
    records = [SampleRecord(r.key, 0, r.length, r.height, r.width) for r in made.shards[0].samples]
    parts = [tar[r.offset : r.offset + r.length] for r in made.shards[0].samples]

    def read(data: bytes) -> None:
        for record in records:
            with suppress(ShardError):
                found = parse_sample(data, "x.tar", record)
                assert found.key == record.key

    inner = members({".json": [json_fields], ".png": [png_chunks], ".jpg": [jpeg_segments]})
    return [Target("sample", parts, read, (), [tar_headers, inner])]
