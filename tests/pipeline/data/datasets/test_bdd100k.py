from pathlib import Path

import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.pixels.checks import BadSample

from .conftest import Put, png

MASKS = "labels/sem_seg/masks"
COLORMAPS = "labels/sem_seg/colormaps"
LABEL = [[0, 18, 255], [5, 255, 17]]
EXPECTED = LABEL


@pytest.mark.parametrize(("folder", "mode"), [(MASKS, "L"), (COLORMAPS, "P")])
@pytest.mark.parametrize("top", ["", "bdd100k/"])
def test_layout_of_2021(put: Put, tmp_path: Path, folder: str, mode: str, top: str):
    put(f"{top}images/10k/val/00a360bd-27ccb1dd.jpg")
    put(f"{top}{folder}/val/00a360bd-27ccb1dd.png", png(LABEL, mode))
    reader = open_reader("bdd100k", str(tmp_path))
    (source,) = reader.listing("val").sources
    assert source.key == "00a360bd-27ccb1dd"
    assert source.image == f"{top}images/10k/val/00a360bd-27ccb1dd.jpg"
    assert reader.native_label(source).tolist() == EXPECTED
    assert reader.listing("train").sources == ()


@pytest.mark.parametrize("root", ["", "bdd100k", "bdd100k/seg"])
def test_layout_of_2018(put: Put, tmp_path: Path, root: str):
    put("bdd100k/seg/images/train/0004a4c0-d4dff0ad.jpg")
    put("bdd100k/seg/labels/train/0004a4c0-d4dff0ad_train_id.png", png(LABEL))
    put("bdd100k/seg/color_labels/train/0004a4c0-d4dff0ad_train_color.png", png(LABEL))
    reader = open_reader("bdd100k", str(tmp_path / root))
    listing = reader.listing("train")
    (source,) = listing.sources
    assert source.key == "0004a4c0-d4dff0ad"
    assert reader.native_label(source).tolist() == EXPECTED
    assert listing.left_out == ()


def test_a_mask_is_preferred_and_a_colormap_fills_in(put: Put, tmp_path: Path):
    for name in ("a", "b", "c"):
        put(f"images/10k/train/{name}.jpg")
    put(f"{MASKS}/train/a.png", png([[1]]))
    put(f"{COLORMAPS}/train/a.png", png([[2]], "P"))
    put(f"{COLORMAPS}/train/b.png", png([[3]], "P"))
    put(f"{COLORMAPS}/train/d.png", png([[3]], "P"))
    reader = open_reader("bdd100k", str(tmp_path))
    listing = reader.listing("train")
    assert [int(reader.native_label(source)[0, 0]) for source in listing.sources] == [1, 3]
    assert listing.left_out == (
        LeftOut("images/10k/train/c.jpg", "no label"),
        LeftOut(f"{COLORMAPS}/train/d.png", "no image"),
    )


def test_a_grey_colormap_is_refused(put: Put, tmp_path: Path):
    put("images/10k/train/a.jpg")
    put(f"{COLORMAPS}/train/a.png", png([[70, 107]]))
    reader = open_reader("bdd100k", str(tmp_path))
    (source,) = reader.listing("train").sources
    with pytest.raises(BadSample, match=r"colormaps/train/a\.png.*palette"):
        reader.native_label(source)
