"""The conversion job on real samples in every form, and on malformed downloads."""

import io
import json
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs.cli import main
from jobs.prepare_shards import run
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.shards.format import find_manifests, load_manifest, read_sample
from pipeline.data.taxonomy import IGNORE, lookup_table, native_table
from pipeline.storage.open import open_storage
from tests.support.official_archives import OFFICIAL, below, pack_coco, write_archive
from tests.support.real_samples import copy_root
from tests.support.tiny_roots import write, write_ade20k

pytestmark = pytest.mark.usefixtures("local_ray")


def job(*arguments: object) -> int:
    return main(PrepareConfig, run, [str(argument) for argument in arguments])


def stored_labels(out: Path, dataset: str) -> dict[str, np.ndarray]:
    """Split and key -> (H, W) uint8 universal ids, over all splits."""
    storage = open_storage(str(out))
    found = {}
    for split in ("train", "val"):
        manifest = find_manifests(storage, split).get(dataset)
        for shard in manifest.shards if manifest else ():
            for record in shard.samples:
                sample = read_sample(storage, dataset, split, shard, record)
                found[sample.meta["source"]] = np.asarray(Image.open(io.BytesIO(sample.png)))
    return found


def plain_label(dataset: str, path: Path, table: str) -> np.ndarray:
    """The universal ids of a label file, read in the plainest way, without the readers."""
    ids = np.full(256, IGNORE, np.uint8)
    for entry in native_table(table):
        ids[entry.native_id] = lookup_table(table, overridden=True)[entry.native_id]
    if dataset == "idd":
        return ids[plain_polygons(path)]
    with Image.open(path) as image:
        stored = np.asarray(image)
    if dataset == "coco_panoptic":
        index = json.loads(path.parent.with_suffix(".json").read_text())
        (entry,) = (a for a in index["annotations"] if a["file_name"] == path.name)
        native = np.full(stored.shape[:2], IGNORE, np.uint8)
        segment = stored.astype(int) @ [1, 256, 65536]
        for info in entry["segments_info"]:
            native[segment == info["id"]] = info["category_id"]
        return ids[native]
    if "semseg-label37" in path.parts:
        stored = np.where(stored == IGNORE, IGNORE, stored + 1)
    return ids[stored]


def plain_polygons(path: Path) -> np.ndarray:
    names = {entry.native_name: entry.native_id for entry in native_table("idd")}
    document = json.loads(path.read_text())
    picture = Image.new("L", (document["imgWidth"], document["imgHeight"]), names["unlabeled"])
    for item in document["objects"]:
        if not item["deleted"] and len(item["polygon"]) >= 3:
            corners = [tuple(corner) for corner in item["polygon"]]
            ImageDraw.Draw(picture).polygon(corners, fill=names[item["label"]])
    return np.asarray(picture)


def label_of(dataset: str, image: str) -> str:
    """The label file that belongs to an image, by the datasets' documentation."""
    stem, name = image.rsplit(".", 1)[0], Path(image).stem
    return {
        "ade20k": stem.replace("images/", "annotations/") + ".png",
        "bdd100k": stem.replace("images/10k", "labels/sem_seg/colormaps") + ".png",
        "cityscapes": stem.replace("leftImg8bit", "gtFine") + "_labelIds.png",
        "coco_panoptic": stem.replace("val2017", "annotations/panoptic_val2017") + ".png",
        "idd": stem.replace("leftImg8bit", "gtFine") + "_polygons.json",
        "mapillary": stem.replace("images/", "v1.2/labels/") + ".png",
        "sunrgbd": f"semseg-label37/train/{name.replace('img-', '00')}.png",
    }[dataset]


@pytest.fixture
def sample(shared_data, tmp_path: Path):
    """Gives a dataset's root of real files."""
    return lambda name: copy_root(shared_data(f"samples/{name}"), tmp_path / name)


FOLDERS = {
    "ade20k": ("ade20k", 2),
    "bdd100k": ("bdd100k", 4),
    "bdd100k_small": ("bdd100k", 6),
    "cityscapes": ("cityscapes", 2),
    "cityscapes_small": ("cityscapes", 1),
    "coco_panoptic": ("coco_panoptic", 1),
    "idd": ("idd", 1),
    "mapillary_small": ("mapillary", 1),
    "sunrgbd": ("sunrgbd", 1),
}


@pytest.mark.samples
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_masks_equal_their_label_files(sample, tmp_path: Path, folder: str):
    dataset, count = FOLDERS[folder]
    root = sample(folder)
    arguments = (f"--roots.{dataset}", root, "--max_bad_fraction", 0.5, "--workers", 1)
    tables = {"": dataset} | ({"34": "cityscapes34"} if dataset == "cityscapes" else {})
    for classes, table in tables.items():
        out = tmp_path / f"out{classes}"
        more = ("--cityscapes_classes", classes) if classes else ()
        assert job(*arguments, *more, "--out", out, "--short_side_px", 4000) == 0
        labels = stored_labels(out, dataset)
        assert len(labels) == count
        for image, label in labels.items():
            path = root / label_of(dataset, image)
            if folder == "bdd100k_small":  # its masks hold other ids than its colormaps; see below
                masks = Path(str(path).replace("colormaps", "masks"))
                path = masks if masks.is_file() else path
            np.testing.assert_array_equal(label, plain_label(dataset, path, table))
            assert (label != IGNORE).mean() > 0.3


@pytest.mark.samples
def test_real_files_in_their_official_archives(
    sample, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = []
    expected = {}
    for folder in ("ade20k", "bdd100k", "cityscapes", "coco_panoptic", "idd", "mapillary_small"):
        dataset = FOLDERS[folder][0]
        root = sample(folder)
        inner = root / "ADEChallengeData2016" if dataset == "ade20k" else root
        packed = tmp_path / "packed" / dataset
        if dataset == "coco_panoptic":
            (root / "train2017").mkdir(exist_ok=True)
            packed.mkdir(parents=True)
            pack_coco(root, packed)
        else:
            for name, (folders, top) in OFFICIAL[dataset].items():
                files = {
                    top + n: data for part in folders for n, data in below(inner, part).items()
                }
                write_archive(packed / name, files)
        arguments += [f"--roots.{dataset}", packed]
        expected[dataset] = root
    out = tmp_path / "out"
    more = ("--max_bad_fraction", 0.5, "--short_side_px", 4000)
    assert job(*arguments, "--out", out, *more) == 0
    shown = capsys.readouterr().out
    assert "cityscapes/train: train: 2 samples with image and label, 2975 published" in shown
    for dataset, root in expected.items():
        labels = stored_labels(out, dataset)
        assert len(labels) >= 1
        for image, label in labels.items():
            for top in ("IDD_Segmentation/", "bdd100k/"):
                image = image.removeprefix(top)
            np.testing.assert_array_equal(
                label, plain_label(dataset, root / label_of(dataset, image), dataset)
            )
    manifest = load_manifest(open_storage(str(out)), "cityscapes", "train")
    assert "2973 are missing" in manifest.notes[0]


def png_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of one pixel that claims to be larger."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


BAD_LABELS = {
    "16 bits": (png_bytes(np.ones((24, 40), np.uint16)), "16 bits"),
    "rgba": (png_bytes(np.ones((24, 40, 4), np.uint8)), "RGBA"),
    "rgb": (png_bytes(np.ones((24, 40, 3), np.uint8)), "RGB"),
    "other size": (png_bytes(np.ones((24, 41), np.uint8)), "its label 41x24"),
    "cut short": (
        png_bytes(np.random.default_rng(1).integers(0, 9, (24, 40), np.uint8))[:90],
        "cannot be read",
    ),
    "claims 60000 x 60000": (claimed_png(60000, 60000), "decompression bomb"),
    "claims the image's size": (claimed_png(40, 24), "cannot be read"),
    "ids outside the table": (
        png_bytes(np.full((24, 40), 151, np.uint8)),
        "ids 151: not in the table",
    ),
    "no image": (b"<html>", "cannot be read"),
    "empty": (b"", "cannot be read"),
}


@pytest.mark.parametrize("packed", [False, True])
def test_malformed_samples_end_in_the_bad_list(tmp_path: Path, packed: bool):
    root = tmp_path / "ADEChallengeData2016"
    write_ade20k(root)
    first = root / "images/training/ADE_train_00000001.jpg"
    with Image.open(first) as image:
        width, height = image.size
    expected = {}
    for number, (kind, (label, reason)) in enumerate(BAD_LABELS.items(), 100):
        name = f"images/training/ADE_train_{number:08d}.jpg"
        picture = Image.fromarray(np.full((24, 40, 3), 90, np.uint8))
        picture.save(root / name)
        write(root / f"annotations/training/ADE_train_{number:08d}.png", label)
        expected[name] = (kind, reason)
    cut = root / "images/training/ADE_train_00000200.jpg"
    cut.write_bytes(first.read_bytes()[:-20])
    label = png_bytes(np.full((height, width), 7, np.uint8))
    write(root / "annotations/training/ADE_train_00000200.png", label)
    expected["images/training/ADE_train_00000200.jpg"] = ("a JPEG cut short", "cut short")
    where, base = tmp_path, "ADEChallengeData2016/"
    if packed:
        files = below(tmp_path, "ADEChallengeData2016")
        files["../images/training/ADE_train_00000400.jpg"] = b"evil"
        where = tmp_path / "packed"
        write_archive(where / "ADEChallengeData2016.zip", files)
    out = tmp_path / "out"
    assert job("--roots.ade20k", where, "--out", out, "--max_bad_fraction", 0.9) == 0
    manifest = load_manifest(open_storage(str(out)), "ade20k", "train")
    left_out = dict(manifest.left_out)
    for name, (kind, reason) in expected.items():
        assert reason in left_out.pop(base + name), kind
    if packed:
        reason = left_out.pop("ADEChallengeData2016.zip: ../images/training/ADE_train_00000400.jpg")
        assert "leaves the archive" in reason
    assert left_out == {}
    assert len(stored_labels(out, "ade20k")) == 3 + 1


def damaged_zip(folder: Path) -> Path:
    write_archive(folder / "ADEChallengeData2016.zip", {"images/training/a.jpg": bytes(5000)})
    path = folder / "ADEChallengeData2016.zip"
    path.write_bytes(path.read_bytes()[:-40])
    return folder


def damaged_tar(folder: Path) -> Path:
    write(folder / "IDD_Segmentation.tar.gz", b"<html>log in</html>")
    return folder / "IDD_Segmentation.tar.gz"


def locked_zip(folder: Path) -> Path:
    """An archive of which every member is marked as encrypted."""
    path = folder / "city.zip"
    write_archive(path, {"leftImg8bit/train/a/a_leftImg8bit.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def damaged_json(folder: Path) -> Path:
    write(folder / "val2017/000000000139.jpg", b"x")
    write(folder / "annotations/panoptic_val2017/000000000139.png", b"x")
    write(folder / "annotations/panoptic_val2017.json", b'{"annotations": [{"segments')
    return folder


@pytest.mark.parametrize(
    ("dataset", "make", "message"),
    [
        ("ade20k", damaged_zip, "ADEChallengeData2016.zip: must be a whole .zip archive"),
        ("idd", damaged_tar, "IDD_Segmentation.tar.gz: must be a whole .tar.gz archive"),
        ("coco_panoptic", damaged_json, "must be the JSON of COCO's panoptic annotations"),
        ("cityscapes", locked_zip, "nothing that can be read: city.zip: leftImg8bit/train/a/a_"),
        ("sunrgbd", lambda folder: folder, "does not exist or is empty"),
        ("mapillary", lambda folder: folder / "nowhere.zip", "does not exist or is empty"),
    ],
)
def test_a_malformed_download_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture, dataset: str, make, message: str
):
    (tmp_path / "in").mkdir()
    root = make(tmp_path / "in")
    assert job(f"--roots.{dataset}", root, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_34_classes_without_cityscapes_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_ade20k(tmp_path / "ade")
    arguments = ("--roots.ade20k", tmp_path / "ade", "--out", tmp_path / "out")
    assert job(*arguments, "--cityscapes_classes", 34) == 2
    assert "has no effect without roots.cityscapes" in capsys.readouterr().err
    assert job(*arguments, "--cityscapes_classes", 20) == 2
    assert "must be 19 or 34" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
