"""The held-out sets' readers on tiny folders in the official layout, and MSeg's tables."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets.held_out import HELD_OUT_SETS, held_out_table, open_held_out
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy import IGNORE, universal
from pipeline.errors import UserError
from pipeline.evaluation.held_out import held_out_space
from pipeline.scoring import DROPPED

LAYOUTS = {
    "voc2012": ("JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png"),
    "pascal-context-60": ("JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png"),
    "camvid-11": ("test/0001TP_008550.png", "testannot/0001TP_008550.png"),
    "wilddash-19": ("wd_val_01/cn0000_100000.png", "wd_val_01/cn0000_100000_labelIds.png"),
    "kitti-19": ("training/image_2/000000_10.png", "training/semantic/000000_10.png"),
    "scannet-20": (
        "scannet_frames_25k/scene0011_00/color/000000.jpg",
        "scannet_frames_25k/scene0011_00/label/000000.png",
    ),
}
LISTS = {
    "voc2012": ("ImageSets/Segmentation/val.txt", "2007_000033\n"),
    "pascal-context-60": ("ImageSets/SegmentationContext/val.txt", "2008_000002\n"),
    "scannet-20": ("scannetv2_val.txt", "scene0011_00\n"),
}


def write(root: Path, dataset: str, label_size: tuple[int, int] = (2, 3)) -> None:
    image, label = LAYOUTS[dataset]
    for path in (image, label):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4) if label_size == (2, 3) else (5, 9), (250, 10, 10)).save(root / image)
    table = held_out_table(dataset)
    ids = np.full(label_size, table[1].stored_id, np.uint8)
    ids[0, 0] = table[0].stored_id
    Image.fromarray(ids).save(root / label)
    if dataset in LISTS:
        path, text = LISTS[dataset]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize("dataset", HELD_OUT_SETS)
@pytest.mark.parametrize("inside", ["", "download/"])
def test_the_official_layout(dataset, inside, tmp_path):
    write(tmp_path / inside, dataset)
    reader = open_held_out(dataset, str(tmp_path))
    (source,) = reader.sources()
    assert source.image == inside + LAYOUTS[dataset][0]
    image, label = reader.read(source)
    # The picture is brought to the size of its label.
    assert image.shape == (2, 3, 3)
    assert image[0, 0, 0] > 200 > 50 > image[0, 0, 2]
    table = held_out_table(dataset)
    assert label.tolist()[0] == [table[0].stored_id, table[1].stored_id, table[1].stored_id]


def test_a_label_of_another_shape_is_bad(tmp_path):
    write(tmp_path, "kitti-19", (4, 4))
    reader = open_held_out("kitti-19", str(tmp_path))
    with pytest.raises(BadSample, match="000000_10"):
        reader.read(reader.sources()[0])


def test_another_root_is_told(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(UserError, match=r"roots\.kitti-19=.*training/semantic.*leftImg8bit"):
        open_held_out("kitti-19", str(tmp_path))


@pytest.mark.parametrize("dataset", HELD_OUT_SETS)
def test_tables_name_universal_classes_once(dataset):
    table = held_out_table(dataset)
    names = [name for entry in table for name in entry.universal_names]
    assert len(names) == len(set(names))
    assert set(names) <= set(universal().classes)
    assert len({entry.stored_id for entry in table}) == len(table) == int(dataset[-2:] if
        dataset != "voc2012" else 21)  # fmt: skip
    space = held_out_space(dataset)
    assert sum(i != IGNORE for i in space.lut) == len(table)
    for name, number in zip(universal().classes, space.text_class, strict=True):
        owners = [e.name for e in table if name in e.universal_names]
        assert owners == ([] if number == DROPPED else [space.classes[number]])


def test_some_entries_by_hand():
    kitti = {e.name: e for e in held_out_table("kitti-19")}
    assert (kitti["road"].stored_id, kitti["rider"].stored_id) == (7, 25)
    assert kitti["rider"].universal_names == ("rider_other", "bicyclist", "motorcyclist")
    context = {e.name: e.stored_id for e in held_out_table("pascal-context-60")}
    assert [context[n] for n in ("background", "aeroplane", "bag", "wood")] == [0, 1, 2, 59]
    scannet = {e.name: e.stored_id for e in held_out_table("scannet-20")}
    assert (scannet["wall"], scannet["shower curtain"], scannet["otherfurniture"]) == (1, 28, 39)
