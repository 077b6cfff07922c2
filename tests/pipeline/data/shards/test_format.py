import dataclasses
import hashlib
import json
import subprocess
import sys
import tarfile

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.shards.format import (
    EncodedSample,
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    ShardWriter,
    find_manifests,
    load_manifest,
    read_sample,
)
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

KEYS = st.from_regex(r"[a-z0-9_\-]{1,12}(/[a-z0-9_\-]{1,12})?", fullmatch=True)
SAMPLES = st.lists(
    st.builds(
        EncodedSample,
        key=KEYS,
        jpeg=st.binary(max_size=2000),
        png=st.binary(max_size=600),
        meta=st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
        height=st.integers(1, 5000),
        width=st.integers(1, 5000),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: sample.key,
)


def sample(key: str, size: int = 700) -> EncodedSample:
    jpeg, png = key.encode() * size, b"png of " + key.encode()
    return EncodedSample(key, jpeg, png, {"of": key}, height=4, width=5)


def write_shard(root, samples, dataset="idd", split="train", index=0) -> ShardRecord:
    with ShardWriter(open_storage(str(root)), dataset, split, index) as writer:
        for item in samples:
            writer.write(item)
        return writer.finish()


def manifest_of(*shards: ShardRecord, dataset="idd", split="train") -> Manifest:
    return Manifest(
        1,
        dataset,
        split,
        "mseg-194",
        "f" * 16,
        "0" * 16,
        {"q": 95},
        shards,
        (3, 0, 7),
        (("x", "y"),),
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(samples=SAMPLES)
def test_round_trip_through_webdataset_and_by_offset(tmp_path_factory, samples):
    root = tmp_path_factory.mktemp("shards")
    shard = write_shard(root, samples)
    path = root / "idd/train/idd-train-000000.tar"
    assert shard.size == path.stat().st_size
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(r["__key__"], r["jpg"], r["png"], json.loads(r["json"])) for r in read] == [
        (s.key, s.jpeg, s.png, s.meta) for s in samples
    ]
    for record, item in zip(shard.samples, samples, strict=True):
        stored = read_sample(open_storage(str(root)), "idd", "train", shard, record)
        assert (stored.key, stored.jpeg, stored.png, stored.meta) == (
            item.key,
            item.jpeg,
            item.png,
            item.meta,
        )
        assert (record.height, record.width) == (item.height, item.width)


def test_equal_samples_give_equal_bytes_with_fixed_owner_and_time(tmp_path):
    samples = [sample("a"), sample("b-1")]
    first = write_shard(tmp_path / "1", samples)
    assert write_shard(tmp_path / "2", samples) == first
    with tarfile.open(tmp_path / "1/idd/train/idd-train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {
        (0, 0, 0, "lseg", "lseg")
    }
    assert [m.name for m in members] == [
        "a.jpg",
        "a.json",
        "a.png",
        *map("b-1.{}".format, ("jpg", "json", "png")),
    ]


def test_byte_ranges_tile_the_shard(tmp_path):
    shard = write_shard(tmp_path, [sample("a", 1), sample("b", 513), sample("c", 5000)])
    ends = [record.offset + record.length for record in shard.samples]
    assert [record.offset for record in shard.samples] == [0, *ends[:-1]]
    data = (tmp_path / "idd/train" / shard.name).read_bytes()
    assert not any(data[ends[-1] :])  # Only the end-of-archive blocks follow.


def test_writing_needs_no_torch_and_leaves_webdataset_whole(tmp_path):
    # In a process of its own: this one has both.
    program = f"""
import sys
from pipeline.data.shards.format import ShardWriter
from pipeline.storage.open import open_storage

with ShardWriter(open_storage({str(tmp_path)!r}), "ade20k", "train", 0):
    assert "torch" not in sys.modules
import torch.utils.data, webdataset

assert issubclass(webdataset.WebDataset, torch.utils.data.IterableDataset)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("key", ["", "a.b", "a b", "/a", ".", "a\\b", "x" * 95])
def test_unsafe_keys_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path, [sample(key)])


def test_keys_that_differ_by_case_alone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_shard(tmp_path, [sample("aB"), sample("Ab")])
    assert list(open_storage(str(tmp_path)).list()) == []  # Nothing half-written is left.


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 512},
        {"offset": 100},
        {"key": "b"},
        {"length": 512},
        {"length": 10**9},
        {"length": 0},
        {"offset": -512},
    ],
    ids=str,
)
def test_a_record_that_does_not_fit_names_shard_and_key(tmp_path, change):
    shard = write_shard(tmp_path, [sample("a"), sample("b")])
    record = dataclasses.replace(shard.samples[0], **change)
    with pytest.raises(ShardError, match=rf"idd-train-000000\.tar, key {record.key}: "):
        read_sample(open_storage(str(tmp_path)), "idd", "train", shard, record)


def test_two_samples_in_one_range_are_refused(tmp_path):
    shard = write_shard(tmp_path, [sample("a"), sample("b")])
    a, b = shard.samples
    # As version 1 of the manifest has it: without a checksum, which would tell as well.
    record = dataclasses.replace(a, length=a.length + b.length, crc32=None)
    with pytest.raises(ShardError, match=r"b\.jpg"):
        read_sample(open_storage(str(tmp_path)), "idd", "train", shard, record)


def test_damaged_header_is_noticed(tmp_path):
    shard = write_shard(tmp_path, [sample("a")])
    path = tmp_path / "idd/train" / shard.name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="key a"):
        read_sample(open_storage(str(tmp_path)), "idd", "train", shard.name, shard.samples[0])


RECORDS = st.builds(
    SampleRecord,
    key=KEYS,
    offset=st.integers(0, 2**40),
    length=st.integers(1, 2**30),
    height=st.integers(1, 10**5),
    width=st.integers(1, 10**5),
    crc32=st.none() | st.integers(0, 2**32 - 1),
)
SHARDS = st.builds(
    ShardRecord,
    name=st.from_regex(r"[a-z0-9_]+-(train|val)-[0-9]{6}\.tar", fullmatch=True),
    size=st.integers(0, 2**40),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    samples=st.lists(RECORDS, max_size=3).map(tuple),
)
MANIFESTS = st.builds(
    Manifest,
    format_version=st.sampled_from((1, 2)),
    dataset=st.text(),
    split=st.text(),
    taxonomy=st.text(),
    taxonomy_fingerprint=st.text(),
    source_fingerprint=st.text(),
    settings=st.dictionaries(st.text(), st.integers() | st.text()),
    shards=st.lists(SHARDS, max_size=3).map(tuple),
    class_pixels=st.lists(st.integers(0, 2**60)).map(tuple),
    left_out=st.lists(st.tuples(st.text(), st.text())).map(tuple),
)


@given(MANIFESTS)
def test_manifest_json_round_trip(manifest):
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert again.to_json() == text
    assert again.fingerprint == manifest.fingerprint
    assert again.num_samples == sum(len(shard.samples) for shard in manifest.shards)


def test_fingerprint_changes_with_one_checksum(tmp_path):
    shard = write_shard(tmp_path, [sample("a")])
    other = dataclasses.replace(shard, sha256="0" * 64)
    assert manifest_of(shard).fingerprint != manifest_of(other).fingerprint


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"format_version": 99}', "99"),
        ('{"format_version": 1}', "damaged"),
        (manifest_of().to_json().replace('"shards":[]', '"shards":[{}]'), "damaged"),
        (manifest_of().to_json().replace('"split"', '"spilt"'), "damaged"),
        (manifest_of().to_json().replace('"split":"', '"split":"\\ud800'), "damaged"),
        (manifest_of().to_json().replace('"settings":{', '"settings":{"\\udfff":1,'), "damaged"),
    ],
)
def test_unreadable_manifest_is_a_user_error(text, word):
    with pytest.raises(UserError, match=f"place/manifest.json: .*{word}"):
        Manifest.from_json(text, "place/manifest.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../x"),
        ("name", "../../idd/train/idd-train-000000.tar"),
        ("name", "/etc/passwd"),
        ("name", "C:\\x.tar"),
        ("name", "..\\x.tar"),
        ("name", "more/x.tar"),
        ("name", ".."),
        ("name", ""),
        ("name", "x\0.tar"),
        ("name", None),
        ("sha256", "0" * 63),
        ("sha256", "0" * 64 + "\n"),
        ("sha256", "A" * 64),
        ("sha256", "../" + "0" * 61),
        ("sha256", None),
    ],
)
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path, field, value):
    values = json.loads(manifest_of(write_shard(tmp_path, [sample("a")])).to_json())
    assert Manifest.from_json(json.dumps(values)).shards
    values["shards"][0][field] = value
    with pytest.raises(UserError, match=r"place/manifest\.json: damaged .*delete it and convert"):
        Manifest.from_json(json.dumps(values), "place/manifest.json")


def test_finding_manifests(tmp_path):
    storage = open_storage(str(tmp_path))
    wanted = {}
    for dataset, split in (("idd", "train"), ("ade20k", "train"), ("idd", "val")):
        shard = write_shard(tmp_path, [sample(split)], dataset, split)
        wanted[dataset, split] = manifest_of(shard, dataset=dataset, split=split)
        storage.write(f"{dataset}/{split}/manifest.json", wanted[dataset, split].to_json().encode())
    write_shard(tmp_path, [sample("x")], "bdd100k", "train")  # Unfinished: no manifest.
    found = find_manifests(storage, "train")
    assert list(found) == ["ade20k", "idd"]
    assert found["idd"] == wanted["idd", "train"]
    assert load_manifest(storage, "idd", "val") == wanted["idd", "val"]
    with pytest.raises(UserError, match=r"bdd100k/train/manifest\.json: no such manifest.*idd/val"):
        load_manifest(storage, "bdd100k", "train")
