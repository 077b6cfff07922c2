import io
import os
import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import open_reader
from pipeline.data.prepare.convert import (
    ConvertSettings,
    Unit,
    UnitResult,
    convert_unit,
    count_ids,
    make_units,
)
from pipeline.data.shards.format import StoredSample, read_sample
from pipeline.data.taxonomy import IGNORE, lookup_table, universal
from pipeline.data.taxonomy.labelling import in_universal
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.tiny_roots import (
    cityscapes_files,
    encode,
    noise,
    pillow_bytes,
    write,
    write_ade20k,
    write_cityscapes,
)


def units_of(
    root: Path, out: Path, dataset="cityscapes", split="train", short_side_px=1080, per_shard=256
) -> list[Unit]:
    reader = open_reader(dataset, str(root))
    sources = reader.listing(split).sources
    sizes = {entry.path: entry.size for entry in reader.root.list()}
    settings = ConvertSettings(
        short_side_px=short_side_px,
        jpeg_quality=95,
        samples_per_shard=per_shard,
        taxonomy_fingerprint="t",
        table=dataset,
        lookup="l",
    )
    labelling = in_universal(dataset, relabelled=False)
    blank = Unit(
        dataset=dataset,
        split=split,
        root=str(root),
        out=str(out),
        settings=settings,
        labelling=labelling,
    )
    return make_units(blank, sources, sizes)


def convert_all(root: Path, out: Path, **options) -> tuple[UnitResult, dict[str, StoredSample]]:
    """Converts a root of one unit; the stored samples by the path of their source image."""
    (unit,) = units_of(root, out, **options)
    result = convert_unit(unit)
    samples = {}
    for record in result.shard.samples if result.shard else ():
        stored = read_sample(open_storage(str(out)), unit.dataset, unit.split, result.shard, record)
        assert label_of(stored).shape == (record.height, record.width)
        samples[stored.meta["source"]] = stored
    return result, samples


def label_of(stored: StoredSample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored.png)))


def image_of(stored: StoredSample) -> np.ndarray:
    """(H, W, 3) int BGR"""
    return cv2.imdecode(np.frombuffer(stored.jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)


def test_labels_are_mapped_and_images_kept(tmp_path):
    labels = write_cityscapes(tmp_path / "root")
    result, samples = convert_all(tmp_path / "root", tmp_path / "out")
    assert result.left_out == ()
    train = {name: label for name, label in labels.items() if "/train/" in name}
    assert samples.keys() == train.keys()
    names = universal().classes
    counts = dict.fromkeys(("road", "sky", "car"), 0)
    for name, native in train.items():
        stored = samples[name]
        label = label_of(stored)
        for native_id, universal_name in ((7, "road"), (23, "sky"), (26, "car")):
            assert np.array_equal(label == names.index(universal_name), native == native_id)
            counts[universal_name] += int((native == native_id).sum())
        assert np.array_equal(label == IGNORE, native == 4)
        source = cv2.imread(str(tmp_path / "root" / name))
        assert abs(image_of(stored) - source).mean() < 3
        assert stored.meta == {
            "dataset": "cityscapes",
            "split": "train",
            "source": name,
            "original_size": [32, 64],
            "classes": sorted(names.index(n) for n in counts),
        }
    seen = {names[i]: count for i, count in enumerate(result.class_pixels) if count}
    assert seen == counts


def test_jpeg_sources_keep_their_bytes(tmp_path):
    write_ade20k(tmp_path / "root", num_train=2)
    _, samples = convert_all(tmp_path / "root", tmp_path / "out", dataset="ade20k")
    assert len(samples) == 2
    for name, stored in samples.items():
        assert stored.jpeg == (tmp_path / "root" / name).read_bytes()
        label = label_of(stored)
        table = lookup_table("ade20k")
        assert (label[:3, :3] == IGNORE).all()  # 0 is `other`, not the first class.
        assert (label[5:10] == table[1]).all()
        assert (label[16:] == table[4]).all()


def test_grey_jpeg_becomes_colour(tmp_path):
    write_ade20k(tmp_path / "root", num_train=1)
    name = "images/training/ADE_train_00000001.jpg"
    grey = Image.open(tmp_path / "root" / name).convert("L")
    write(tmp_path / "root" / name, pillow_bytes(grey, format="JPEG", quality=95))
    _, samples = convert_all(tmp_path / "root", tmp_path / "out", dataset="ade20k")
    stored = Image.open(io.BytesIO(samples[name].jpeg))
    assert stored.mode == "RGB"
    assert abs(np.asarray(stored).astype(int) - np.asarray(grey)[:, :, None]).mean() < 2


def test_large_images_are_shrunk_with_their_labels(tmp_path):
    labels = write_cityscapes(tmp_path / "root", num_train=1, num_val=0, size=(90, 181))
    _, samples = convert_all(tmp_path / "root", tmp_path / "out", short_side_px=30)
    ((name, stored),) = samples.items()
    label = label_of(stored)
    assert label.shape == image_of(stored).shape[:2] == (30, 60)
    assert stored.meta["original_size"] == [90, 181]
    native = labels[name]
    assert set(np.unique(label)) <= set(np.unique(lookup_table("cityscapes")[native]))
    share = (native == 23).mean()
    assert abs((label == universal().id_of("sky")).mean() - share) < 0.02


def break_size(image: Path, label: Path) -> None:
    write(label, encode(np.zeros((32, 63), np.uint8), ".png"))


def break_image(image: Path, label: Path) -> None:
    write(image, image.read_bytes()[:500])


def break_label(image: Path, label: Path) -> None:
    write(label, label.read_bytes()[:60])


def break_depth(image: Path, label: Path) -> None:
    write(label, encode(np.full((32, 64), 7, np.uint16), ".png"))


def remove_image(image: Path, label: Path) -> None:
    os.unlink(image)


def remove_label(image: Path, label: Path) -> None:
    os.unlink(label)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (break_size, "64x32 pixels, its label 63x32"),
        (break_image, "does not decode|cannot be read"),
        (break_label, "cannot be read"),
        (break_depth, "8-bit"),
        (remove_image, "missing"),
        (remove_label, "was there"),
    ],
)
def test_a_bad_sample_is_left_out_and_the_others_are_kept(tmp_path, damage, word):
    root = tmp_path / "root"
    write_cityscapes(root)
    (unit,) = units_of(root, tmp_path / "out")  # Listed before the damage.
    bad_image, bad_label = cityscapes_files("train", "aachen", 2)
    damage(root / bad_image, root / bad_label)
    result = convert_unit(unit)
    (left_out,) = result.left_out
    assert left_out.name == bad_image
    assert re.search(word, left_out.reason)
    assert result.shard is not None
    assert len(result.shard.samples) == 4
    with tarfile.open(tmp_path / "out" / unit.path) as tar:
        assert len(tar.getnames()) == 12


def test_a_unit_without_a_usable_sample_writes_no_shard(tmp_path):
    root = tmp_path / "root"
    write_cityscapes(root, num_train=2)
    for frame in range(2):
        break_image(root / cityscapes_files("train", "aachen", frame)[0], root)
    result, _ = convert_all(root, tmp_path / "out")
    assert result.shard is None
    assert len(result.left_out) == 2
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_a_failing_storage_is_not_taken_for_a_bad_sample(tmp_path):
    write_cityscapes(tmp_path / "root")
    (unit,) = units_of(tmp_path / "root", tmp_path / "out")
    write(tmp_path / "out/cityscapes/train", b"a file in the way")
    with pytest.raises(UserError, match="a file is where"):
        convert_unit(unit)


def test_units_are_fixed_slices_and_repeat_byte_for_byte(tmp_path):
    root = tmp_path / "root"
    write_cityscapes(root)
    units = units_of(root, tmp_path / "1", per_shard=2)
    assert [len(unit.sources) for unit in units] == [2, 2, 1]
    assert [unit.name for unit in units] == [f"cityscapes-train-00000{i}.tar" for i in range(3)]
    for unit in units:
        convert_unit(unit)
    for unit in reversed(units_of(root, tmp_path / "2", per_shard=2)):
        convert_unit(unit)
    for unit in units:
        assert (tmp_path / "1" / unit.path).read_bytes() == (
            tmp_path / "2" / unit.path
        ).read_bytes()


def test_the_record_of_a_shard_reads_back(tmp_path):
    write_cityscapes(tmp_path / "root")
    os.unlink(tmp_path / "root" / cityscapes_files("train", "aachen", 0)[1])
    (unit,) = units_of(tmp_path / "root", tmp_path / "out")
    result = convert_unit(unit)
    assert UnitResult.from_json((tmp_path / "out" / f"{unit.path}.json").read_bytes()) == result


def test_fingerprint_follows_files_and_settings(tmp_path):
    root = tmp_path / "root"
    write_cityscapes(root)

    def fingerprints(**options) -> list[str]:
        return [unit.fingerprint for unit in units_of(root, tmp_path / "out", **options)]

    before = fingerprints(per_shard=3)
    assert before == fingerprints(per_shard=3)
    assert before != fingerprints(per_shard=3, short_side_px=20)
    image = root / cityscapes_files("train", "aachen", 4)[0]
    write(image, encode(noise(32, 64, seed=99), ".png"))
    after = fingerprints(per_shard=3)
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (3, 9_000_001)])
def test_counts_of_ids_are_exact(shape):
    label = np.full(shape, 17, np.uint8)
    label.flat[:: max(2, label.size // 1000)] = 255
    assert np.array_equal(count_ids(label), np.bincount(label.ravel(), minlength=256))
