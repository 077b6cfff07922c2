"""Official archives, read in place, give what the unpacked folders give."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Reader
from pipeline.data.taxonomy import DATASETS, universal
from pipeline.demo.layouts import write_mini_seven
from pipeline.storage.archives.packed import PackedStorage
from tests.support.official_archives import (
    OFFICIAL,
    below,
    pack_official,
    upload_tree,
    write_archive,
)


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    vectors = {name: rng.normal(size=16).astype(np.float32) for name in universal().classes}
    vectors = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    return write_mini_seven(tmp_path_factory.mktemp("mini"), vectors, 0, 3, 2)


def content(reader: Reader) -> dict[str, tuple[bytes, bytes]]:
    """Key -> bytes of the image, and of the decoded label."""
    found = {}
    for split in ("train", "val"):
        listing = reader.listing(split)
        assert listing.left_out == ()
        for source in listing.sources:
            label = reader.native_label(source)
            found[f"{split} {source.key}"] = (reader.root.read(source.image), label.tobytes())
    assert len(found) == 5
    return found


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("where", ["in the root", "one folder down", "s3"])
def test_packed_equals_unpacked(
    request: pytest.FixtureRequest,
    roots: dict[str, Path],
    tmp_path: Path,
    dataset: str,
    where: str,
):
    folder = tmp_path / "root" / ("downloads" if where == "one folder down" else "")
    pack_official(dataset, roots[dataset], folder)
    root = str(tmp_path / "root")
    if where == "s3":
        root = f"{request.getfixturevalue('s3_bucket')}/raw"
        upload_tree(tmp_path / "root", root)
    reader = open_reader(dataset, root)
    assert isinstance(reader.root, PackedStorage)
    assert content(reader) == content(open_reader(dataset, str(roots[dataset])))
    again = open_reader(dataset, reader.root.uri)  # as workers do
    assert again.listing("val") == reader.listing("val")
    sizes = {entry.path: entry.size for entry in reader.root.list()}
    for source in reader.listing("train").sources:
        assert sizes[source.image] == len(reader.root.read(source.image))


@pytest.mark.parametrize(
    "dataset", sorted({*DATASETS} - {"bdd100k", "cityscapes", "coco_panoptic"})
)
def test_the_archive_itself_as_root(roots: dict[str, Path], tmp_path: Path, dataset: str):
    pack_official(dataset, roots[dataset], tmp_path / "root")
    (archive,) = (tmp_path / "root").iterdir()
    assert content(open_reader(dataset, str(archive))) == content(
        open_reader(dataset, str(roots[dataset]))
    )


@pytest.mark.parametrize("dataset", ["bdd100k", "cityscapes", "coco_panoptic"])
def test_one_of_several_archives_means_the_folder(
    roots: dict[str, Path], tmp_path: Path, dataset: str
):
    pack_official(dataset, roots[dataset], tmp_path / "root")
    expected = content(open_reader(dataset, str(roots[dataset])))
    for archive in sorted((tmp_path / "root").iterdir()):
        assert content(open_reader(dataset, str(archive))) == expected


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_any_kind_and_name_of_archive(
    roots: dict[str, Path], tmp_path: Path, dataset: str, suffix: str
):
    write_archive(tmp_path / f"mine{suffix}", below(roots[dataset].parent, dataset))
    expected = content(open_reader(dataset, str(roots[dataset])))
    assert content(open_reader(dataset, str(tmp_path / f"mine{suffix}"))) == expected
    (tmp_path / "root").mkdir()
    (tmp_path / f"mine{suffix}").rename(tmp_path / "root" / f"mine{suffix}")
    assert content(open_reader(dataset, str(tmp_path / "root"))) == expected


def test_one_archive_unpacked_and_the_other_not(roots: dict[str, Path], tmp_path: Path):
    pack_official("cityscapes", roots["cityscapes"], tmp_path)
    (tmp_path / "gtFine_trainvaltest.zip").unlink()
    (tmp_path / "gtFine").symlink_to(roots["cityscapes"] / "gtFine")
    assert content(open_reader("cityscapes", str(tmp_path))) == content(
        open_reader("cityscapes", str(roots["cityscapes"]))
    )


@pytest.mark.parametrize("top", ["", "coco/"])
def test_coco_with_only_the_inner_zips_packed(roots: dict[str, Path], tmp_path: Path, top: str):
    root = roots["coco_panoptic"]
    for split in ("train", "val"):
        images = tmp_path / top / f"{split}2017"
        images.parent.mkdir(parents=True, exist_ok=True)
        images.symlink_to(root / f"{split}2017")
        inner = below(root / "annotations", f"panoptic_{split}2017")
        write_archive(tmp_path / top / f"annotations/panoptic_{split}2017.zip", inner)
        name = f"annotations/panoptic_{split}2017.json"
        (tmp_path / top / name).write_bytes((root / name).read_bytes())
    assert content(open_reader("coco_panoptic", str(tmp_path))) == content(
        open_reader("coco_panoptic", str(root))
    )


def test_archives_that_are_unpacked_already_are_not_opened(roots: dict[str, Path], tmp_path: Path):
    for name in (*OFFICIAL["cityscapes"], "idd-segmentation.tar.gz"):
        (tmp_path / name).write_bytes(b"not even an archive")
    for dataset in ("cityscapes", "idd"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder).unlink(missing_ok=True)
            (tmp_path / folder).symlink_to(roots[dataset] / folder)
        assert len(content(open_reader(dataset, str(tmp_path)))) == 5


def test_members_that_are_refused_are_in_the_bad_list(roots: dict[str, Path], tmp_path: Path):
    files = below(roots["ade20k"].parent, "ade20k")
    files["../images/training/ADE_train_00000009.jpg"] = b"evil"
    files["/images/validation/ADE_val_00000009.jpg"] = b"evil"
    files["../run.sh"] = b"evil"
    write_archive(tmp_path / "ade.zip", files)
    reader = open_reader("ade20k", str(tmp_path / "ade.zip"))
    train, val = reader.listing("train"), reader.listing("val")
    assert [item.name for item in train.left_out] == [
        "ade.zip: ../images/training/ADE_train_00000009.jpg"
    ]
    assert "leaves the archive" in train.left_out[0].reason
    assert [item.name for item in val.left_out] == [
        "ade.zip: /images/validation/ADE_val_00000009.jpg"
    ]
    assert len(train.sources) == 3
    assert sum("run.sh" in note for note in train.notes) == 1
    assert not list(tmp_path.rglob("run.sh"))
