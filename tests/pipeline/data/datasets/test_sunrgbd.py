from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.taxonomy import lookup_table, universal

from .conftest import Put, png


@pytest.mark.parametrize("folder", ["label37", "label38"])
def test_reads_values_unshifted(put: Put, tmp_path: Path, folder: str):
    put("image/train/img-000001.jpg")
    put(f"{folder}/train/00000001.png", png([[0, 1, 37], [255, 255, 5]]))
    reader = open_reader("sunrgbd", str(tmp_path))
    (source,) = reader.listing("train").sources
    native = reader.native_label(source)
    assert native.tolist() == [[0, 1, 37], [255, 255, 5]]
    assert universal().classes[lookup_table("sunrgbd")[native][0, 1]] == "wall"


def test_mseg_labels_are_shifted_back(put: Put, tmp_path: Path):
    put("sunrgbd/image/test/img-005050.jpg")
    put("sunrgbd/semseg-label37/test/00005050.png", png([[0, 36, 255, 255]]))
    reader = open_reader("sunrgbd", str(tmp_path))
    (source,) = reader.listing("val").sources
    native = reader.native_label(source)
    assert native.tolist() == [[1, 37, 255, 255]]
    names = [universal().classes[i] for i in lookup_table("sunrgbd")[native][0, :2]]
    assert names == ["wall", "bag"]


def test_splits_repeat_numbers(put: Put, tmp_path: Path):
    for folder in ("train", "test"):
        put(f"image/{folder}/img-000001.jpg")
        put(f"label37/{folder}/00000001.png", png([[1]]))
    put("image/train/img-000012.jpg")
    put("image/train/img-000120.jpg")
    put("label37/train/00000120.png", png([[1]]))
    put("label37/train/00001200.png", png([[1]]))
    reader = open_reader("sunrgbd", str(tmp_path))
    train, val = reader.listing("train"), reader.listing("val")
    assert [s.key for s in train.sources] == ["train__img-000001", "train__img-000120"]
    assert train.sources[1].label == "label37/train/00000120.png"
    assert [s.key for s in val.sources] == ["val__img-000001"]
    assert val.sources[0].image == "image/test/img-000001.jpg"
    assert train.left_out == (
        LeftOut("image/train/img-000012.jpg", "no label"),
        LeftOut("label37/train/00001200.png", "no image"),
    )


@pytest.mark.parametrize(
    ("ids", "is_told"),
    [
        (range(14), True),
        ([*range(1, 14), 255], True),
        (range(1, 13), False),  # A few rooms may lack any class.
        ([*range(14), 22], False),
    ],
)
def test_labels_of_13_classes_are_told_from_those_of_37(put: Put, tmp_path: Path, ids, is_told):
    put("image/train/img-000001.jpg")
    put("label37/train/00000001.png", png([[1]]))
    pixels = np.zeros(256, np.int64)
    pixels[[*ids]] = 100
    remarks = open_reader("sunrgbd", str(tmp_path)).remarks(pixels)
    assert ["13 classes" in text for text in remarks] == [True] * is_told
