"""What conversions store as labels: relabelled, native, in native classes, of own datasets."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.cli import main
from jobs.prepare_shards import run
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.shards.format import Manifest, StoredSample, load_manifest, read_sample
from pipeline.data.taxonomy import IGNORE, lookup_table, native_table, universal
from pipeline.storage.open import open_storage
from tests.pipeline.data.prepare.test_relabel import COLUMNS, Case, idd
from tests.support.tiny_roots import (
    encode,
    noise,
    pillow_bytes,
    write,
    write_ade20k,
    write_cityscapes,
)

COCO_IMAGE = "000000000139"


def job(*arguments: object) -> int:
    return main(PrepareConfig, run, [str(argument) for argument in arguments])


def stored(out: Path, dataset: str, split: str) -> tuple[Manifest, list[StoredSample]]:
    storage = open_storage(str(out))
    manifest = load_manifest(storage, dataset, split)
    return manifest, [
        read_sample(storage, dataset, split, shard, record)
        for shard in manifest.shards
        for record in shard.samples
    ]


def ids(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)))


def names_at(manifest: Manifest, sample: StoredSample) -> set[str]:
    """The classes that a sample shows."""
    return {manifest.class_names[i] for i in np.unique(ids(sample.png)) if i != IGNORE}


def write_shop(root: Path, table: str = "id,name,universal\n", mask: int = 3) -> None:
    """A dataset of the user's own: Wall (0), belt (1), parcel (2), dirt (3)."""
    for number in range(8):
        label = np.zeros((20, 30), np.uint8)
        label[4:], label[8:], label[12:], label[:2] = 1, 2, mask, IGNORE
        write(root / f"images/day/p{number}.jpg", encode(noise(20, 30, number), ".jpg"))
        write(root / f"masks/day/p{number}.png", encode(label, ".png"))
    rows = "0,Wall,\n1,belt,conveyor_belt\n2,parcel,\n3,dirt,-\n"
    write(root / "classes.csv", (table + rows).encode())


@pytest.mark.usefixtures("local_ray")
class TestRelabelling:
    def test_decisions_reach_the_shards_and_other_ones_another_out(self, tmp_path, capsys):
        case: Case = idd()
        for name, data in case.files.items():
            write(tmp_path / "root" / name, data)
        table = tmp_path / "tables/idd.tsv"
        write(table, (COLUMNS + case.row + "\n").encode())
        arguments = ("--roots.idd", tmp_path / "root", "--out", tmp_path / "out")
        assert job(*arguments, "--relabel", table.parent) == 0
        assert "relabelled 1 segments" in capsys.readouterr().out
        manifest, samples = stored(tmp_path / "out", "idd", "train")
        shown = {sample.meta["source"].split("/")[2]: sample for sample in samples}
        assert "backpack" in names_at(manifest, shown["32"])
        assert "backpack" not in names_at(manifest, shown["33"])
        new = ids(shown["32"].png) == universal().id_of("backpack")
        assert new[:4, :6].all()
        assert new.sum() == 24
        # The same again is finished; without the decisions, or with others, it is another set.
        assert job(*arguments, "--relabel", table.parent) == 0
        table.write_text(COLUMNS + case.row.replace("backpack", "bag") + "\n")
        assert job(*arguments, "--relabel", table.parent) == 2
        assert "relabel=" in capsys.readouterr().err
        assert job(*arguments) == 2
        assert "choose another out" in capsys.readouterr().err

    @pytest.mark.samples
    def test_a_real_image_of_coco(self, shared_data, tmp_path):
        tables = shared_data("reference/taxonomy/relabel")
        root = shared_data("samples/coco_panoptic")
        arguments = ("--roots.coco_panoptic", root, "--splits", '["val"]', "--native", "true")
        assert job(*arguments, "--out", tmp_path / "with", "--relabel", tables) == 0
        assert job(*arguments, "--out", tmp_path / "without") == 0
        manifest, (sample,) = stored(tmp_path / "with", "coco_panoptic", "val")
        assert manifest.left_out == ()
        label, native = ids(sample.png), ids(sample.native_png)
        path = root / f"annotations/panoptic_val2017/{COCO_IMAGE}.png"
        segments = np.asarray(Image.open(path)).astype(int) @ [1, 256, 65536]
        of_light = segments == 6068135
        assert 100 < of_light.sum() < label.size / 4
        assert (label[of_light] == universal().id_of("lamp")).all()
        # Every pixel: as by MSeg's targets, but for the decisions of the table.
        expected = lookup_table("coco_panoptic")[native]
        rug, light = universal().id_of("rug_floormat"), universal().id_of("lamp")
        expected[segments == 6391959] = rug
        expected[of_light] = light
        expected[segments == 7238567] = universal().id_of("table")
        assert np.array_equal(label, expected)
        _, (plain,) = stored(tmp_path / "without", "coco_panoptic", "val")
        assert (ids(plain.png)[of_light] == IGNORE).all()
        assert np.array_equal(ids(plain.native_png), native)


@pytest.mark.usefixtures("local_ray")
class TestNative:
    def test_native_ids_are_stored_beside_the_others(self, tmp_path):
        raw = write_cityscapes(tmp_path / "root")
        arguments = ("--roots.cityscapes", tmp_path / "root", "--out", tmp_path / "out")
        assert job(*arguments, "--native", "true") == 0
        for split, count in (("train", 5), ("val", 2)):
            _, samples = stored(tmp_path / "out", "cityscapes", split)
            assert len(samples) == count
            for sample in samples:
                native = ids(sample.native_png)
                assert np.array_equal(native, raw[sample.meta["source"]])
                assert np.array_equal(ids(sample.png), lookup_table("cityscapes")[native])
        assert job(*arguments) == 2  # Shards without them are others.

    def test_the_datasets_own_classes(self, tmp_path):
        write_ade20k(tmp_path / "ade")
        write_cityscapes(tmp_path / "city")
        roots = ("--roots.ade20k", tmp_path / "ade", "--roots.cityscapes", tmp_path / "city")
        assert job(*roots, "--out", tmp_path / "out", "--taxonomy", "native") == 0
        manifest, samples = stored(tmp_path / "out", "ade20k", "train")
        table = [entry.native_name for entry in native_table("ade20k")]
        assert manifest.class_names == tuple(table[1:])
        assert len(manifest.class_names) == 150
        assert names_at(manifest, samples[0]) == {"wall", "floor"}
        label = ids(samples[0].png)
        assert (label[:3, :3] == IGNORE).all()  # Which is `other` in the file.
        manifest, samples = stored(tmp_path / "out", "cityscapes", "train")
        assert len(manifest.class_names) == 19
        assert names_at(manifest, samples[0]) == {"road", "sky", "car"}


@pytest.mark.usefixtures("local_ray")
class TestOwn:
    def test_new_classes_extend_the_taxonomy(self, tmp_path):
        write_shop(tmp_path / "shop")
        shop = ("--own.shop.root", tmp_path / "shop", "--own.shop.val_fraction", 0.5)
        assert job(*shop, "--out", tmp_path / "out") == 0
        sizes = {}
        for split in ("train", "val"):
            manifest, samples = stored(tmp_path / "out", "shop", split)
            sizes[split] = len(samples)
            assert manifest.class_names == (*universal().classes, "parcel")
            assert names_at(manifest, samples[0]) == {"wall", "conveyor_belt", "parcel"}
            label = ids(samples[0].png)
            assert (label[12:] == IGNORE).all()
            assert (label[:2] == IGNORE).all()
            assert (label[8:12] == 194).all()
            assert manifest.left_out == ()
        assert sum(sizes.values()) == 8
        assert min(sizes.values()) >= 1
        recipe = {"own": {"shop": {"root": str(tmp_path / "shop"), "val_fraction": 0.5}}}
        recipe |= {"out": str(tmp_path / "yaml"), "taxonomy": "native"}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert job("--config", tmp_path / "recipe.yaml") == 0
        manifest, samples = stored(tmp_path / "yaml", "shop", "train")
        assert manifest.class_names == ("Wall", "belt", "parcel")
        assert len(samples) == sizes["train"]

    def test_folders_of_splits_are_the_splits(self, tmp_path):
        for split in ("train", "val"):
            for kind, end in (("images", ".jpg"), ("masks", ".png")):
                picture = noise(20, 30, 0) if end == ".jpg" else np.zeros((20, 30), np.uint8)
                write(tmp_path / f"shop/{kind}/{split}/a{end}", encode(picture, end))
        # Of the same size when it is turned: nothing else tells which view the mask belongs to.
        exif = Image.Exif()
        exif[0x0112] = 3
        upside_down = pillow_bytes(Image.fromarray(noise(20, 30, 0)), format="JPEG", exif=exif)
        write(tmp_path / "shop/images/val/a.jpg", upside_down)
        write(tmp_path / "shop/classes.csv", b"id\tname\n0\tparcel\n")
        assert job("--own.shop.root", tmp_path / "shop", "--out", tmp_path / "out") == 0
        for split, turn in (("train", None), ("val", 3)):
            manifest, samples = stored(tmp_path / "out", "shop", split)
            assert [sample.meta["source"] for sample in samples] == [f"images/{split}/a.jpg"]
            assert [sample.meta.get("exif_orientation") for sample in samples] == [turn]
            told = [note for note in manifest.notes if "images/val/a.jpg ask by EXIF" in note]
            assert len(told) == (turn is not None)

    def test_an_id_outside_the_table_is_a_bad_sample(self, tmp_path, capsys):
        write_shop(tmp_path / "shop", mask=4)
        assert job("--own.shop.root", tmp_path / "shop", "--out", tmp_path / "out") == 2
        assert "ids 4: not in the table of shop" in capsys.readouterr().err


class TestMistakes:
    def test_what_would_have_no_effect_is_refused(self, tmp_path, capsys):
        arguments = ("--roots.ade20k", tmp_path, "--out", tmp_path / "out")
        assert job(*arguments, "--relabel", tmp_path, "--taxonomy", "native") == 2
        assert "no effect with taxonomy=native" in capsys.readouterr().err
        assert job(*arguments, "--ade20k_full", tmp_path) == 2
        assert "no effect without relabel" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (None, r"no such file: write a table"),
            ("0,parcel\n", "must name the columns id and name"),
            ("id,name\n255,parcel\n", "line 2: id='255': must be a whole number from 0 to 254"),
            ("id,name\nx,parcel\n", "id='x'"),
            ("id,name\n0,\n", "line 2: has no name"),
            ("id,name\n0,a\n0,b\n", "line 3: id=0: comes twice"),
            ("id,name\n", "names no class"),
            ("id,name,universal\n0,w,wal\n", "universal='wal'"),
        ],
    )
    def test_a_table_that_cannot_be_used_is_refused(self, tmp_path, capsys, table, message):
        write_shop(tmp_path / "shop")
        path = tmp_path / "shop/classes.csv"
        path.unlink()
        if table is not None:
            path.write_text(table)
        assert job("--own.shop.root", tmp_path / "shop", "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error
        assert "own.shop.classes=" in error
        if "wal'" in message:
            assert "did you mean 'wall'" in error

    def test_names_and_folders_that_cannot_be_used_are_refused(self, tmp_path, capsys):
        write_shop(tmp_path / "shop")
        for name in ("ade20k", "My-Shop"):
            assert job(f"--own.{name}.root", tmp_path / "shop", "--out", tmp_path / "out") == 2
            assert f"own.{name}: " in capsys.readouterr().err
        shop = ("--own.shop.root", tmp_path / "shop", "--own.shop.masks", "labels")
        assert job(*shop, "--out", tmp_path / "out") == 2
        assert "own.shop.masks=labels: there is no such folder" in capsys.readouterr().err
