from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.pixels.checks import BadSample

from .conftest import Put, png

A = "ADEChallengeData2016/annotations"
I = "ADEChallengeData2016/images"  # noqa: E741
LABEL = [[0, 1, 2], [149, 150, 255]]


def test_reads_labels_unshifted(put: Put, tmp_path: Path):
    put(f"{I}/training/ADE_train_00000001.jpg")
    put(f"{A}/training/ADE_train_00000001.png", png(LABEL))
    put(f"{I}/validation/ADE_val_00000001.jpg")
    put(f"{A}/validation/ADE_val_00000001.png", png([[7, 255]]))
    reader = open_reader("ade20k", str(tmp_path))
    (train,) = reader.listing("train").sources
    (val,) = reader.listing("val").sources
    assert train.key == "ade_train_00000001"
    assert train.image == f"{I}/training/ADE_train_00000001.jpg"
    label = reader.native_label(train)
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 1, 2], [149, 150, 255]]
    assert reader.native_label(val).tolist() == [[7, 255]]


def test_unpaired_files_are_named(put: Put, tmp_path: Path):
    put(f"{I}/training/ADE_train_00000001.jpg")
    put(f"{A}/training/ADE_train_00000002.png", png(LABEL))
    listing = open_reader("ade20k", str(tmp_path)).listing("train")
    assert listing.sources == ()
    assert listing.left_out == (
        LeftOut(
            f"{A}/training/ADE_train_00000002.png",
            f"no image: {I}/training/ADE_train_00000002.jpg is not there",
        ),
        LeftOut(
            f"{I}/training/ADE_train_00000001.jpg",
            f"no label: {A}/training/ADE_train_00000001.png is not there",
        ),
    )


@pytest.mark.parametrize(
    "label",
    [
        png(np.zeros((2, 3, 3)), "RGB"),
        png(LABEL, "I;16"),
        png(np.zeros((2, 3, 4)), "RGBA"),
        b"",
        b"no image at all",
        png(np.arange(5000).reshape(50, 100) % 150)[:-60],
    ],
    ids=["rgb", "16 bit", "rgba", "empty", "text", "truncated"],
)
def test_a_bad_label_is_named(put: Put, tmp_path: Path, label: bytes):
    put(f"{I}/training/ADE_train_00000001.jpg")
    put(f"{A}/training/ADE_train_00000001.png", label)
    reader = open_reader("ade20k", str(tmp_path))
    (source,) = reader.listing("train").sources
    with pytest.raises(BadSample, match=r"training/ADE_train_00000001\.png"):
        reader.native_label(source)


@pytest.mark.parametrize(
    ("ids", "is_told"),
    [([0, 3, 149, 255], True), ([255], True), ([0, 12], False), ([1, 150, 255], False)],
)
def test_shifted_ids_are_told_from_official_ones(put: Put, tmp_path: Path, ids, is_told: bool):
    put(f"{I}/training/ADE_train_00000001.jpg")
    put(f"{A}/training/ADE_train_00000001.png", png(LABEL))
    pixels = np.zeros(256, np.int64)
    pixels[ids] = 100
    remarks = open_reader("ade20k", str(tmp_path)).remarks(pixels)
    assert ["shifted by one" in text for text in remarks] == [True] * is_told


def test_a_label_that_vanishes_is_a_bad_sample(put: Put, tmp_path: Path):
    put(f"{I}/training/ADE_train_00000001.jpg")
    put(f"{A}/training/ADE_train_00000001.png", png(LABEL))
    reader = open_reader("ade20k", str(tmp_path))
    (source,) = reader.listing("train").sources
    (tmp_path / source.label).unlink()
    with pytest.raises(BadSample, match=r"ADE_train_00000001\.png"):
        reader.native_label(source)
