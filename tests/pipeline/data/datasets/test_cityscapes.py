from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.taxonomy import lookup_table, universal

from .conftest import Put, png

STEM = "aachen/aachen_000000_000019"
IMAGE = f"leftImg8bit/train/{STEM}_leftImg8bit.png"
LABEL = f"gtFine/train/{STEM}_gtFine_labelIds.png"


def put_one(put: Put, top: str = "") -> None:
    put(top + IMAGE)
    put(top + LABEL, png([[0, 7, 25], [33, 255, 255]]))
    put(f"{top}gtFine/train/{STEM}_gtFine_instanceIds.png", png([[25001]], "I;16"))
    put(f"{top}gtFine/train/{STEM}_gtFine_labelTrainIds.png", png([[1]]))
    put(f"{top}gtFine/train/{STEM}_gtFine_color.png", png([[1]]))
    put(f"{top}gtFine/train/{STEM}_gtFine_polygons.json", {})


@pytest.mark.parametrize("root", ["", "gtFine", "leftImg8bit"])
def test_reads_raw_ids(put: Put, tmp_path: Path, root: str):
    put_one(put)
    reader = open_reader("cityscapes", str(tmp_path / root))
    listing = reader.listing("train")
    (source,) = listing.sources
    assert (source.key, source.image, source.label) == ("aachen_000000_000019", IMAGE, LABEL)
    assert listing.left_out == ()
    native = reader.native_label(source)
    assert native.tolist() == [[0, 7, 25], [33, 255, 255]]
    names = [universal().classes[i] for i in lookup_table("cityscapes")[native].flat if i < 255]
    assert names == ["road", "bicyclist", "bicycle"]


def test_unpaired_files_are_named(put: Put, tmp_path: Path):
    put_one(put)
    put("leftImg8bit/train/bonn/bonn_000001_000019_leftImg8bit.png")
    put("leftImg8bit/train/bonn/._bonn_000001_000019_leftImg8bit.png")
    put("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png", png([[1]]))
    listing = open_reader("cityscapes", str(tmp_path)).listing("train")
    assert len(listing.sources) == 1
    assert listing.left_out == (
        LeftOut("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png", "no image"),
        LeftOut("leftImg8bit/train/bonn/bonn_000001_000019_leftImg8bit.png", "no label"),
    )


def test_one_folder_above(put: Put, tmp_path: Path):
    put_one(put, top="downloads/")
    reader = open_reader("cityscapes", str(tmp_path))
    (source,) = reader.listing("train").sources
    assert source.image == f"downloads/{IMAGE}"
    assert reader.native_label(source)[0, 1] == 7


def test_the_table_of_all_34_classes():
    known = dict(enumerate(universal().classes)) | {255: None}
    all_34 = [known[int(i)] for i in lookup_table("cityscapes34")[:34]]
    only_19 = [known[int(i)] for i in lookup_table("cityscapes")[:34]]
    more = {n: name for n, name in enumerate(all_34) if only_19[n] != name}
    assert more == {
        10: "railroad",
        14: "guard_rail",
        15: "bridge",
        16: "tunnel",
        18: "pole",
        29: "car",
        30: "trailer",
    }
    assert [n for n, name in enumerate(all_34) if name is None] == [0, 1, 2, 3, 4, 5, 6, 9]


def test_differences_from_the_published_counts_are_noted(put: Put, tmp_path: Path):
    put_one(put)
    listing = open_reader("cityscapes", str(tmp_path)).listing("train")
    assert listing.notes == (
        "train: 1 samples with image and label, 2975 published: 2974 are missing",
    )


@pytest.mark.parametrize(
    ("ids", "is_told"),
    [
        ([0, 11, 18, 255], True),  # The 19 classes of training, and what is none.
        ([11, 255], True),
        ([*range(19)], True),  # Labels in which every pixel has a class.
        ([*range(20)], True),  # 19 for what is none.
        ([*range(20), 255], True),
        ([13], False),  # Raw ids of a small part of the pictures.
        ([0, 7, 18], False),
        ([7, 26, 255], False),  # Raw ids, and pixels that another program has filled.
        ([], False),
    ],
)
def test_train_ids_are_told_from_raw_ids(put: Put, tmp_path: Path, ids: list[int], is_told: bool):
    put_one(put)
    pixels = np.zeros(256, np.int64)
    pixels[ids] = 100
    remarks = open_reader("cityscapes", str(tmp_path)).remarks(pixels)
    assert ["train ids" in text for text in remarks] == [True] * is_told
