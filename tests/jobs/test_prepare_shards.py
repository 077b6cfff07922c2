import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.cli import main
from jobs.prepare_shards import run
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.shards.format import find_manifests, load_manifest, read_sample
from pipeline.data.taxonomy import universal
from pipeline.storage.open import open_storage
from tests.support.tiny_roots import cityscapes_files, encode, write, write_ade20k, write_cityscapes

REPOSITORY = Path(__file__).resolve().parents[2]


def job(*arguments: object) -> int:
    return main(PrepareConfig, run, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def roots(tmp_path) -> Path:
    """A folder with a Cityscapes root of 5 + 2 and an ADE20K root of 3 + 1 samples."""
    write_cityscapes(tmp_path / "city")
    write_ade20k(tmp_path / "ade")
    return tmp_path


@pytest.mark.usefixtures("local_ray")
class TestConversion:
    def test_two_datasets_become_shards_and_manifests(self, roots, capsys):
        out = roots / "out"
        arguments = ("--roots.cityscapes", roots / "city", "--roots.ade20k", roots / "ade")
        assert job(*arguments, "--out", out, "--samples_per_shard", 2) == 0
        assert sorted(files(out)) == [
            "ade20k/train/ade20k-train-000000.tar",
            "ade20k/train/ade20k-train-000001.tar",
            "ade20k/train/manifest.json",
            "ade20k/val/ade20k-val-000000.tar",
            "ade20k/val/manifest.json",
            "cityscapes/train/cityscapes-train-000000.tar",
            "cityscapes/train/cityscapes-train-000001.tar",
            "cityscapes/train/cityscapes-train-000002.tar",
            "cityscapes/train/manifest.json",
            "cityscapes/val/cityscapes-val-000000.tar",
            "cityscapes/val/manifest.json",
        ]
        storage = open_storage(str(out))
        manifests = find_manifests(storage, "train")
        assert {name: m.num_samples for name, m in manifests.items()} == {
            "ade20k": 3,
            "cityscapes": 5,
        }
        manifest = manifests["cityscapes"]
        assert manifest.taxonomy_fingerprint == universal().fingerprint
        keys = []
        for shard in manifest.shards:
            data = (out / "cityscapes/train" / shard.name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
            for record in shard.samples:
                keys.append(read_sample(storage, "cityscapes", "train", shard, record).key)
        assert len(set(keys)) == 5
        assert keys == sorted(keys)
        # 5 frames of 32x64: sky above row 10, a car of 4 columns in the lower half, 2 rows ignored.
        pixels = dict(zip(universal().classes, manifest.class_pixels, strict=True))
        assert {name: count for name, count in pixels.items() if count} == {
            "sky": 5 * 10 * 64,
            "car": 5 * 4 * 14,
            "road": 5 * (20 * 64 - 4 * 14),
        }
        table = capsys.readouterr().out
        assert re.search(r"cityscapes\s+train\s+5\s+3\s+0\.000\s+0\s+3", table)
        assert re.search(r"ade20k\s+val\s+1\s+1\s+0\.000\s+0\s+2", table)

    def test_bytes_do_not_depend_on_parallelism(self, roots):
        for workers in (1, 4):
            arguments = ("--out", roots / f"out{workers}", "--workers", workers)
            assert (
                job("--roots.cityscapes", roots / "city", *arguments, "--samples_per_shard=1") == 0
            )
        assert files(roots / "out1") == files(roots / "out4")
        assert len(files(roots / "out1")) == 9

    def test_a_second_run_has_nothing_to_do(self, roots, caplog, capsys):
        arguments = ("--roots.ade20k", roots / "ade", "--out", roots / "out")
        assert job(*arguments) == 0
        before = {path: path.stat().st_mtime_ns for path in (roots / "out").rglob("*.*")}
        capsys.readouterr()
        with caplog.at_level("INFO"):
            assert job(*arguments) == 0
        assert {path: path.stat().st_mtime_ns for path in (roots / "out").rglob("*.*")} == before
        assert "ade20k/train: finished by an earlier run, nothing to do" in caplog.text
        assert "unchanged" in capsys.readouterr().out

    def test_a_restart_skips_finished_shards_and_ends_with_the_same_bytes(
        self, roots, caplog, capsys
    ):
        arguments = ("--roots.cityscapes", roots / "city", "--samples_per_shard", 1)
        assert job(*arguments, "--out", roots / "undisturbed") == 0
        image = roots / "city" / cityscapes_files("train", "aachen", 4)[0]
        whole = image.read_bytes()
        image.write_bytes(whole[:200])
        out = roots / "out"
        assert job(*arguments, "--out", out, "--workers", 1) == 2
        assert "1 of 5 samples are bad" in capsys.readouterr().err
        shard = out / "cityscapes/train/cityscapes-train-000000.tar"
        written = shard.stat().st_mtime_ns
        assert not (out / "cityscapes/train/manifest.json").exists()
        image.write_bytes(whole)
        # Left by a longer listing; nothing may find it once the manifest is there.
        write(out / "cityscapes/train/cityscapes-train-000077.tar", b"old")
        with caplog.at_level("INFO"):
            assert job(*arguments, "--out", out) == 0
        assert "cityscapes/train: 4 of 5 shards finished by an earlier run" in caplog.text
        assert shard.stat().st_mtime_ns == written
        assert files(out) == files(roots / "undisturbed")

    def test_a_lost_shard_is_converted_again(self, roots):
        arguments = ("--roots.cityscapes", roots / "city", "--out", roots / "out")
        assert job(*arguments) == 0
        before = files(roots / "out")
        os.unlink(roots / "out/cityscapes/val/cityscapes-val-000000.tar")
        assert job(*arguments) == 0
        assert files(roots / "out") == before

    def test_bad_samples_are_named_in_the_manifest(self, roots):
        image, label = cityscapes_files("train", "aachen", 1)
        write(roots / "city" / label, encode(np.zeros((8, 8), np.uint8), ".png"))
        os.unlink(roots / "city" / cityscapes_files("train", "aachen", 3)[1])
        arguments = ("--roots.cityscapes", roots / "city", "--out", roots / "out")
        assert job(*arguments, "--max_bad_fraction", 0.4) == 0
        manifest = load_manifest(open_storage(str(roots / "out")), "cityscapes", "train")
        assert manifest.num_samples == 3
        assert manifest.left_out == (
            (image, "the image is 64x32 pixels, its label 8x8"),
            (cityscapes_files("train", "aachen", 3)[0], "no label"),
        )

    def test_s3_in_and_out_gives_the_local_bytes(self, roots, s3_bucket):
        storage = open_storage(s3_bucket)
        for path, data in files(roots / "ade").items():
            storage.write(f"raw/ade/{path}", data)
        arguments = ("--samples_per_shard", 2)
        s3_root, s3_out = f"{s3_bucket}/raw/ade", f"{s3_bucket}/shards"
        assert job("--roots.ade20k", s3_root, "--out", s3_out, *arguments) == 0
        assert job("--roots.ade20k", roots / "ade", "--out", roots / "out", *arguments) == 0
        out = open_storage(s3_out)
        assert {entry.path: out.read(entry.path) for entry in out.list()} == files(roots / "out")

    def test_a_split_that_the_root_lacks_is_skipped_unless_asked_for(
        self, tmp_path, caplog, capsys
    ):
        write_cityscapes(tmp_path / "city", num_val=0)
        arguments = ("--roots.cityscapes", tmp_path / "city", "--out", tmp_path / "out")
        assert job(*arguments) == 0
        assert "split 'val'" in caplog.text
        assert list(find_manifests(open_storage(str(tmp_path / "out")), "val")) == []
        assert job(*arguments, "--splits", "[train,val]") == 2
        assert "split 'val'" in capsys.readouterr().err

    def test_an_output_that_cannot_be_written_ends_in_one_message(self, roots, capsys):
        write(roots / "out/cityscapes/train", b"a file in the way")
        assert job("--roots.cityscapes", roots / "city", "--out", roots / "out") == 2
        assert "a file is where" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"taxonomy_fingerprint": "0123456789abcdef"}, "taxonomy_fingerprint=0123456789abcdef"),
            ({"format_version": 99}, "format version 99"),
        ],
    )
    def test_output_of_another_taxonomy_is_refused_and_kept(self, roots, capsys, change, word):
        arguments = ("--roots.ade20k", roots / "ade", "--out", roots / "out")
        assert job(*arguments) == 0
        path = roots / "out/ade20k/train/manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        before = files(roots / "out")
        assert job(*arguments) == 2
        message = capsys.readouterr().err
        assert word in message
        assert str(path) in message
        assert files(roots / "out") == before

    def test_output_of_other_settings_or_sources_is_refused(self, roots, capsys):
        arguments = ("--roots.ade20k", roots / "ade", "--out", roots / "out")
        assert job(*arguments) == 0
        assert job(*arguments, "--short_side_px", 20) == 2
        assert "short_side_px=1080, but this run has 20" in capsys.readouterr().err
        write_ade20k(roots / "ade", num_train=4)
        assert job(*arguments) == 2
        assert "other source files" in capsys.readouterr().err

    @pytest.mark.long  # Seven conversions; `test_encode.py` has the pictures.
    def test_train_splits_can_be_stored_no_finer_than_training_uses(self, roots, capsys):
        arguments = ("--roots.cityscapes", roots / "city", "--samples_per_shard", 2)
        for name, more in (("plain", ()), ("small", ("--train_long_side", 40))):
            assert job(*arguments, "--out", roots / name, *more) == 0
        plain, small = files(roots / "plain"), files(roots / "small")
        assert {name for name in plain if plain[name] != small[name]} == {
            name for name in plain if "/train/" in name
        }
        manifest = load_manifest(open_storage(str(roots / "small")), "cityscapes", "train")
        assert {(s.height, s.width) for shard in manifest.shards for s in shard.samples} == {
            (20, 40)  # Of 32 x 64.
        }
        assert manifest.settings["train_long_side"] == 40
        assert b"train_long_side" not in plain["cityscapes/train/manifest.json"]
        capsys.readouterr()
        assert job(*arguments, "--out", roots / "small", "--train_long_side", 40) == 0
        assert job(*arguments, "--out", roots / "small") == 2
        assert "train_long_side=40, but this run has 0" in capsys.readouterr().err
        assert job(*arguments, "--out", roots / "plain", "--train_long_side", 40) == 2
        assert "train_long_side=0, but this run has 40" in capsys.readouterr().err
        # What is not well above it stays as it is, to the byte.
        assert job(*arguments, "--out", roots / "near", "--train_long_side", 50) == 0
        tar = "cityscapes/train/cityscapes-train-000000.tar"
        assert files(roots / "near")[tar] == plain[tar]

    def test_labels_without_any_known_class_are_no_usable_samples(self, roots, capsys):
        for frame in range(5):
            label = cityscapes_files("train", "aachen", frame)[1]
            write(roots / "city" / label, encode(np.zeros((32, 64), np.uint8), ".png"))
        arguments = ("--roots.cityscapes", roots / "city", "--splits", "[train]")
        assert job(*arguments, "--out", roots / "out") == 2
        assert "zero usable samples" in capsys.readouterr().err


def test_zero_usable_samples(tmp_path, capsys, local_ray):
    write_cityscapes(tmp_path / "city", num_train=2, num_val=0)
    for frame in range(2):
        write(tmp_path / "city" / cityscapes_files("train", "aachen", frame)[0], b"no image")
    arguments = ("--roots.cityscapes", tmp_path / "city", "--out", tmp_path / "out")
    assert job(*arguments, "--max_bad_fraction", 1) == 2
    message = capsys.readouterr().err
    assert "zero usable samples" in message
    assert cityscapes_files("train", "aachen", 1)[0] in message
    assert not list((tmp_path / "out").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--roots.cityscapes", "{0}/nowhere", "--out", "{0}/o"), ("roots.cityscapes", "nowhere")),
        (("--roots.ade20k", "{0}/city", "--out", "{0}/o"), ("roots.ade20k", "cityscapes")),
        (("--roots.citiscapes", "{0}/city", "--out", "{0}/o"), ("roots.cityscapes",)),
        (("--roots.cityscapes", "{0}/city", "--output", "{0}/o"), ("output", "out")),
        (("--roots.cityscapes", "{0}/city"), ("out: not set",)),
        (("--out", "{0}/o"), ("roots", "roots.cityscapes")),
        (("--roots.cityscapes=", "--out", "{0}/o"), ("roots.cityscapes",)),
        (
            ("--roots.cityscapes", "{0}/city", "--out", "{0}/o", "--splits", "[trian]"),
            ("trian", "train"),
        ),
        (("--roots.cityscapes", "{0}/city", "--out", "{0}/o", "--splits", "[]"), ("splits",)),
        (
            ("--roots.cityscapes", "{0}/city", "--out", "{0}/o", "--jpeg_quality", "101"),
            ("jpeg_quality=101", "between 1 and 100"),
        ),
        (
            ("--roots.cityscapes", "{0}/city", "--out", "{0}/o", "--max_bad_fraction", "1.5"),
            ("max_bad_fraction=1.5",),
        ),
        (
            ("--roots.cityscapes", "{0}/city", "--out", "{0}/o", "--workers", "0"),
            ("workers=0",),
        ),
        (("--roots.cityscapes", "{0}/city", "--out", "gs://bucket/o"), ("gs://bucket/o", "s3://")),
    ],
)
def test_wrong_input_ends_in_one_message(roots, capsys, arguments, words):
    assert job(*(argument.format(roots) for argument in arguments)) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    for word in words:
        assert word in message
    assert not (roots / "o").exists()


@pytest.mark.parametrize("place", ["--roots.ade20k", "--out"])
def test_unreachable_s3_is_told_within_seconds(roots, capsys, monkeypatch, s3_endpoint, place):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    arguments = {"--roots.ade20k": str(roots / "ade"), "--out": str(roots / "o")}
    arguments[place] = "s3://bucket/prefix"
    began = time.monotonic()
    assert job(*(part for pair in arguments.items() for part in pair)) == 2
    assert time.monotonic() - began < 20
    message = capsys.readouterr().err
    assert "http://127.0.0.1:9" in message
    assert "AWS_ENDPOINT_URL" in message
    assert "test-secret" not in message


@pytest.mark.slow
def test_the_command_runs_by_recipe_with_its_own_ray(roots):
    recipe = {
        "roots": {"cityscapes": "city"},
        "out": "out",
        "splits": ["train"],
        "samples_per_shard": 3,
    }
    (roots / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(REPOSITORY / "jobs/prepare_shards.py"), "--config=recipe.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "--workers=2"], cwd=roots, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"5/5 images +[\d.]+ images/s +ETA 0s", done.stderr)
    assert re.search(r"cityscapes\s+train\s+5\s+2", done.stdout)
    assert load_manifest(open_storage(str(roots / "out")), "cityscapes", "train").num_samples == 5
