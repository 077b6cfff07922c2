import json
import re
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import doctor
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from tests.support.other_user import open_folder, refused
from tests.support.tiny_roots import (
    cityscapes_files,
    encode,
    noise,
    pillow_bytes,
    write,
    write_ade20k,
    write_cityscapes,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def diagnose(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command, run in this process by as many others as it takes."""
    monkeypatch.setattr(sys, "argv", ["doctor.py", *map(str, arguments)])
    return doctor.command()


def findings(report: Path, part: str = "roots") -> dict[tuple[str, str, str], list[str]]:
    """(dataset, split, kind) -> names, but for remarks about the download as a whole."""
    return {
        (section["dataset"], section["split"], kind): [f["name"] for f in found]
        for section in json.loads(report.read_text())[part]
        for kind, found in section["findings"].items()
        if kind != "note"
    }


def test_healthy_roots(tmp_path, monkeypatch, capsys):
    write_cityscapes(tmp_path / "city")
    write_ade20k(tmp_path / "ade")
    arguments = ("--roots.cityscapes", tmp_path / "city", "--roots.ade20k", tmp_path / "ade")
    report = tmp_path / "report.json"
    assert diagnose(monkeypatch, *arguments, "--out", report) == 0
    shown = capsys.readouterr().out
    # Five images are no problem, but worth a remark: the authors publish 2975.
    assert re.search(r"cityscapes\s+train\s+5\s+5\s+0\s+1\s+ok", shown)
    assert "2970 are missing" in " ".join(shown.split())
    assert "nothing would be lost" in shown
    document = json.loads(report.read_text())
    assert document["lost"] == 0
    assert [(s["dataset"], s["split"], s["checked"]) for s in document["roots"]] == [
        ("ade20k", "train", 3),
        ("ade20k", "val", 1),
        ("cityscapes", "train", 5),
        ("cityscapes", "val", 2),
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_a_root_that_is_one_archive_is_read_as_the_conversion_reads_it(
    tmp_path, monkeypatch, capsys, kind
):
    write_cityscapes(tmp_path / "city")
    archive = Path(shutil.make_archive(str(tmp_path / "City"), kind, tmp_path / "city"))
    report = tmp_path / "report.json"
    for root in (archive, archive.name):
        monkeypatch.chdir(tmp_path)
        assert diagnose(monkeypatch, "--roots.cityscapes", root, "--out", report) == 0
        (train, val) = json.loads(report.read_text())["roots"]
        assert (train["samples"], train["lost"], val["samples"], val["lost"]) == (5, 0, 2, 0)
    assert diagnose(monkeypatch, "--roots.cityscapes", f"{archive}.zip") == 2
    assert "does not exist or is empty" in capsys.readouterr().err


def test_every_kind_of_damage_is_named(tmp_path, monkeypatch, capsys):
    root = tmp_path / "city"
    write_cityscapes(root, num_train=12)
    files = [cityscapes_files("train", "aachen", frame) for frame in range(12)]
    (root / files[0][1]).unlink()
    (root / files[1][0]).write_bytes((root / files[1][0]).read_bytes()[:300])
    write(root / files[2][1], encode(np.full((32, 64), 7, np.uint16), ".png"))
    write(root / files[3][1], encode(np.full((32, 63), 7, np.uint8), ".png"))
    label = np.full((32, 64), 7, np.uint8)
    label[:2] = 77
    write(root / files[4][1], encode(label, ".png"))
    grey = Image.fromarray(noise(32, 64, 5)).convert("L")
    write(root / files[5][0], pillow_bytes(grey, format="PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(noise(32, 64, 6))
    write(root / files[6][0], pillow_bytes(turned, format="JPEG", exif=exif))
    cmyk = Image.fromarray(noise(32, 64, 7)).convert("CMYK")
    write(root / files[7][0], pillow_bytes(cmyk, format="JPEG"))
    bomb = bytearray(encode(noise(1, 1, 8), ".png"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    write(root / files[8][0], bytes(bomb))
    twin = cityscapes_files("val", "ulm", 1)[0]
    write(root / files[9][0], (root / twin).read_bytes())
    report = tmp_path / "report.json"
    arguments = ("--roots.cityscapes", root, "--out", report)
    assert diagnose(monkeypatch, *arguments) == 1
    assert findings(report) == {
        ("cityscapes", "train", "pair"): [files[0][0]],
        ("cityscapes", "train", "image"): [files[1][0], files[8][0]],
        ("cityscapes", "train", "label"): [files[2][0]],
        ("cityscapes", "train", "size"): [files[3][0]],
        ("cityscapes", "train", "unknown id"): [files[4][1]],
        ("cityscapes", "train", "grey"): [files[5][0]],
        ("cityscapes", "train", "rotated"): [files[6][0]],
        ("cityscapes", "train", "CMYK"): [files[7][0]],
        ("cityscapes", "val", "duplicate"): [twin],
    }
    captured = capsys.readouterr()
    assert "6 problems" in captured.out
    assert "ids 77 in 128 pixels" in report.read_text()
    assert "Traceback" not in captured.out + captured.err


def test_remarks_alone_are_no_failure(tmp_path, monkeypatch):
    root = tmp_path / "city"
    write_cityscapes(root, num_train=2)
    image, _ = cityscapes_files("train", "aachen", 0)
    grey = Image.fromarray(noise(32, 64, 5)).convert("L")
    write(root / image, pillow_bytes(grey, format="PNG"))
    assert diagnose(monkeypatch, "--roots.cityscapes", root) == 0


def test_another_datasets_folder_is_a_finding(tmp_path, monkeypatch, capsys):
    write_cityscapes(tmp_path / "city")
    report = tmp_path / "report.json"
    arguments = ("--roots.ade20k", tmp_path / "city", "--out", report)
    assert diagnose(monkeypatch, *arguments) == 1
    assert list(findings(report)) == [("ade20k", "", "layout")]
    assert "looks like cityscapes" in report.read_text()


def test_a_folder_that_may_not_be_read_is_no_wrong_layout(monkeypatch):
    with open_folder() as folder:
        root = folder / "city"
        write_cityscapes(root)
        report = folder / "report.json"
        with refused(0o000, root / "leftImg8bit/train"):
            assert diagnose(monkeypatch, "--roots.cityscapes", root, "--out", report) == 1
        found = findings(report)
        assert found[("cityscapes", "train", "access")]
        assert not any(kind == "layout" for _, _, kind in found)
        assert "permission denied" in report.read_text()


def test_train_ids_in_place_of_raw_ids_are_remarked(tmp_path, monkeypatch):
    write_cityscapes(tmp_path, num_train=2)
    for number, name in enumerate(sorted(tmp_path.rglob("gtFine/train/**/*_labelIds.png"))):
        ids = np.resize(np.array([number, 11, 18, 255], np.uint8), (32, 64))
        name.write_bytes(encode(ids, ".png"))
    report = tmp_path / "report.json"
    assert diagnose(monkeypatch, "--roots.cityscapes", tmp_path, "--out", report) == 0
    said = [
        found["name"]
        for section in json.loads(report.read_text())["roots"]
        if section["split"] == "train"
        for same_kind in section["findings"].values()
        for found in same_kind
    ]
    wanted = "the labels hold 255 and nothing above 18: they look like train ids"
    assert [text for text in said if wanted in text], said


def test_a_dataset_of_your_own(tmp_path, monkeypatch, capsys):
    for number in range(4):
        label = np.full((20, 30), number % 2 * 7, np.uint8)
        write(tmp_path / f"shop/images/p{number}.jpg", encode(noise(20, 30, number), ".jpg"))
        write(tmp_path / f"shop/masks/p{number}.png", encode(label, ".png"))
    write(tmp_path / "shop/classes.csv", b"id,name\n0,wall\n7,belt\n")
    own = f'--own={{"shop": {{"root": "{tmp_path}/shop", "val_fraction": 0}}}}'
    report = tmp_path / "report.json"
    assert diagnose(monkeypatch, own, "--splits", "[train]", "--out", report) == 0
    write(tmp_path / "shop/few.csv", b"id,name\n0,wall\n")
    few = own.replace('"val_fraction"', '"classes": "few.csv", "val_fraction"')
    assert diagnose(monkeypatch, few, "--splits", "[train]", "--out", report) == 1
    unknown = findings(report)["shop", "train", "unknown id"]
    assert unknown == ["masks/p1.png", "masks/p3.png"]
    capsys.readouterr()
    assert diagnose(monkeypatch, own.replace("/shop", "/shopp")) == 2
    assert "own.shop.root=" in capsys.readouterr().err


@pytest.mark.usefixtures("local_ray")
def test_native_labels_of_shards_are_decoded(tmp_path, monkeypatch):
    write_ade20k(tmp_path / "ade")
    config = PrepareConfig(
        roots=RootsConfig(ade20k=str(tmp_path / "ade")),
        out=str(tmp_path / "out"),
        splits=("train",),
        native=True,
    )
    prepare(config)
    assert diagnose(monkeypatch, "--shards", tmp_path / "out") == 0
    path = next((tmp_path / "out").rglob("*.tar"))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".native.png"))
    data[member.offset_data : member.offset_data + 30] = bytes(30)
    path.write_bytes(bytes(data))
    # Damaged before its checksum was taken: only decoding finds it.
    manifest = next((tmp_path / "out").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    for row in content["shards"][0]["samples"]:
        _, offset, length, *_, _ = row
        row[-1] = zlib.crc32(data[offset : offset + length])
    manifest.write_text(json.dumps(content))
    report = tmp_path / "report.json"
    assert diagnose(monkeypatch, "--shards", tmp_path / "out", "--out", report) == 1
    kinds = findings(report, "shards")
    assert len(kinds["ade20k", "train", "decode"]) == 1


def test_a_sample_of_the_files(tmp_path, monkeypatch):
    write_cityscapes(tmp_path / "city", num_train=20, num_val=10)
    report = tmp_path / "report.json"
    arguments = ("--roots.cityscapes", tmp_path / "city", "--out", report)
    assert diagnose(monkeypatch, *arguments, "--sample", 0.1, "--workers", 1) == 0
    sections = json.loads(report.read_text())["roots"]
    assert [(s["samples"], s["checked"]) for s in sections] == [(20, 2), (10, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("roots, own, shards", "--shards")),
        (("--roots.cityscapes", "{0}/nowhere"), ("roots.cityscapes", "does not exist")),
        (("--shards", "{0}"), ("shards=", "prepare_shards.py")),
        (("--shards", "{0}", "--sample", "0"), ("sample=0.0",)),
        (("--shards", "{0}", "--splits", "[trian]"), ("splits='trian'",)),
        (("--shards", "{0}", "--out", "{0}/no/report.json"), ("out=", "folder")),
        (("--rots.cityscapes", "{0}"), ("roots.cityscapes",)),
    ],
)
def test_wrong_usage_ends_in_one_message(tmp_path, monkeypatch, capsys, arguments, words):
    assert diagnose(monkeypatch, *(a.format(tmp_path) for a in arguments)) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def converted(tmp_path_factory, local_ray) -> Path:
    """Shards of eight samples; not to be written to."""
    folder = tmp_path_factory.mktemp("doctor")
    write_cityscapes(folder / "city", num_train=6, num_val=2)
    given = RootsConfig(cityscapes=str(folder / "city"))
    prepare(PrepareConfig(roots=given, out=str(folder / "out"), samples_per_shard=2))
    return folder / "out"


@pytest.fixture
def shards(converted, tmp_path) -> Path:
    """A test's own copy of them, to damage."""
    return Path(shutil.copytree(converted, tmp_path / "out"))


def edit_manifest(shards: Path, edit) -> None:
    path = shards / "cityscapes/train/manifest.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


class TestShards:
    TRAIN = "cityscapes/train"
    FIRST = "cityscapes/train/cityscapes-train-000000.tar"

    def check(self, monkeypatch, shards: Path, code: int) -> dict[str, list[str]]:
        """Names by kind, all in the training split."""
        report = shards.with_name("report.json")
        assert diagnose(monkeypatch, "--shards", shards, "--out", report) == code
        found = findings(report, "shards")
        assert all(key[:2] == ("cityscapes", "train") for key in found)
        return {kind: names for (_, _, kind), names in found.items()}

    def test_sound(self, shards, monkeypatch, capsys):
        assert self.check(monkeypatch, shards, 0) == {}
        assert re.search(r"cityscapes\s+train\s+6\s+6\s+0\s+0\s+ok", capsys.readouterr().out)

    def test_a_flipped_bit_in_a_picture(self, shards, monkeypatch):
        with tarfile.open(shards / self.FIRST) as tar:
            png = next(member for member in tar if member.name.endswith(".png"))
        flip(shards / self.FIRST, png.offset_data + png.size // 2)
        found = self.check(monkeypatch, shards, 1)
        assert found["shard"] == [self.FIRST]
        # The manifest's checksum tells, before any decoder could read it as something else.
        assert found["offset"] == [f"{self.FIRST}, key {png.name.removesuffix('.png')}"]

    def test_a_shard_that_is_gone_and_one_cut_short(self, shards, monkeypatch):
        (shards / self.FIRST).unlink()
        second = shards / self.FIRST.replace("000000", "000001")
        second.write_bytes(second.read_bytes()[:3000])
        found = self.check(monkeypatch, shards, 1)
        assert found["shard"] == [self.FIRST, str(second.relative_to(shards))]
        assert all(str(second.name) in name for name in found["offset"])

    def test_a_wrong_offset(self, shards, monkeypatch):
        def edit(values) -> None:
            values["shards"][1]["samples"][0][1] += 512

        edit_manifest(shards, edit)
        (name,) = self.check(monkeypatch, shards, 1)["offset"]
        assert "000001.tar" in name

    def test_a_wrong_histogram(self, shards, monkeypatch):
        def edit(values) -> None:
            values["class_pixels"][98] += 1

        edit_manifest(shards, edit)
        assert self.check(monkeypatch, shards, 1) == {"histogram": ["class 98"]}

    @pytest.mark.parametrize(
        ("classes", "said"),
        [
            ([f"c{number}" for number in range(300)], "300 classes: must be at most 255"),
            (["ro\nad", *(f"c{number}" for number in range(193))], "must be one line of text"),
            (["\ud800", *(f"c{number}" for number in range(193))], "damaged"),
        ],
    )
    def test_classes_that_no_training_can_have(self, shards, monkeypatch, classes, said):
        def edit(values) -> None:
            values |= {"classes": classes, "class_pixels": [1] * len(classes)}

        edit_manifest(shards, edit)
        found = self.check(monkeypatch, shards, 1)
        assert "manifest" in found
        report = shards.with_name("report.json").read_text()
        assert said in report

    def test_a_stray_tar_an_unfinished_folder_and_a_damaged_manifest(self, shards, monkeypatch):
        stray = f"{self.TRAIN}/cityscapes-train-000009.tar"
        write(shards / stray, b"old")
        assert self.check(monkeypatch, shards, 1) == {"stray": [stray]}
        (shards / self.TRAIN / "manifest.json").write_text("{}")
        assert list(self.check(monkeypatch, shards, 1)) == ["manifest"]
        (shards / self.TRAIN / "manifest.json").unlink()
        assert list(self.check(monkeypatch, shards, 1)) == ["unfinished"]

    def test_in_s3_by_the_command(self, monkeypatch, capsys, caplog, shards, s3_bucket):
        from pipeline.storage.open import open_storage

        storage = open_storage(f"{s3_bucket}/mix")
        for path in shards.rglob("*.*"):
            storage.upload(str(path.relative_to(shards)), path)
        assert diagnose(monkeypatch, "--shards", storage.uri, "--workers=2") == 0
        assert "8/8 samples" in caplog.text
        assert re.search(r"cityscapes\s+val\s+2\s+2\s+0\s+0\s+ok", capsys.readouterr().out)
