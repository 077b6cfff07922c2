"""Readers on real files, against label files read in the plainest possible way."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Reader, Source
from pipeline.data.taxonomy import DATASETS, native_table
from tests.support.real_samples import copy_root

pytestmark = pytest.mark.samples


@pytest.fixture
def root_of(shared_data, tmp_path: Path):
    """Gives a dataset's root."""
    return lambda name: copy_root(shared_data(f"samples/{name}"), tmp_path / name)


def sources(reader: Reader) -> list[Source]:
    return [source for split in ("train", "val") for source in reader.listing(split).sources]


def counts(label: np.ndarray) -> Counter:
    return Counter(label.ravel().tolist())


def plain_counts(dataset: str, path: Path, source: Source) -> Counter:
    """The native ids of a label file, without any of the readers' code."""
    native_ids = {native.native_id for native in native_table(dataset)}
    stored = np.asarray(Image.open(path))
    if dataset == "coco_panoptic":
        split = "train" if "train2017" in str(path) else "val"
        index = json.loads((path.parents[1] / f"panoptic_{split}2017.json").read_text())
        annotation = next(a for a in index["annotations"] if a["file_name"] == path.name)
        categories = {info["id"]: info["category_id"] for info in annotation["segments_info"]}
        result: Counter = Counter()
        for (r, g, b), number in Counter(map(tuple, stored.reshape(-1, 3).tolist())).items():
            result[categories.get(r + 256 * g + 65536 * b, 255)] += number
        return result
    shift = 1 if "semseg-label37" in str(path) else 0
    result = Counter()
    for value, number in counts(stored).items():
        value = value + shift if value != 255 else 255
        result[value if value in native_ids else 255] += number
    return result


@pytest.mark.parametrize(
    ("dataset", "name", "num_samples", "num_left_out"),
    [
        ("ade20k", "ade20k", 2, 0),
        ("bdd100k", "bdd100k", 4, 0),
        ("bdd100k", "bdd100k_small", 6, 1),
        ("cityscapes", "cityscapes", 2, 0),
        ("cityscapes", "cityscapes_small", 1, 0),
        ("coco_panoptic", "coco_panoptic", 1, 1),
        ("mapillary", "mapillary_small", 1, 0),
        ("sunrgbd", "sunrgbd", 1, 0),
    ],
)
def test_histograms(root_of, dataset: str, name: str, num_samples: int, num_left_out: int):
    root = root_of(name)
    reader = open_reader(dataset, str(root))
    found = sources(reader)
    left_out = [item for split in ("train", "val") for item in reader.listing(split).left_out]
    assert len(found) == num_samples
    assert len(left_out) == num_left_out
    for source in found:
        label = reader.native_label(source)
        with Image.open(root / source.image) as image:
            assert label.shape == (image.height, image.width)
        assert counts(label) == plain_counts(dataset, root / source.label, source), source.key


def test_a_palette_and_a_mask_of_one_image_agree(root_of):
    """The palette index of a BDD100K colormap is the train id: its colour says which."""
    root = root_of("bdd100k")
    colours = {0: (128, 64, 128), 2: (70, 70, 70), 8: (107, 142, 35), 10: (70, 130, 180)}
    reader = open_reader("bdd100k", str(root))
    seen = set()
    for source in sources(reader):
        native = reader.native_label(source)
        rgb = np.asarray(Image.open(root / source.label).convert("RGB"))
        for native_id, colour in colours.items():
            if (native == native_id).any():
                assert (rgb[native == native_id] == colour).all()
                seen.add(native_id)
    assert seen == set(colours)


def test_cityscapes_raw_ids_agree_with_train_ids(root_of):
    root = root_of("cityscapes_small")
    reader = open_reader("cityscapes", str(root))
    (source,) = sources(reader)
    native = reader.native_label(source)
    train_file = source.label.replace("labelIds", "labelTrainIds")
    train_ids = np.asarray(Image.open(root / train_file))
    for native_id, train_id in ((7, 0), (8, 1), (11, 2), (21, 8), (23, 10), (26, 13)):
        assert (native == native_id).any()
        # The two files were shrunk one by one: a few pixels at borders differ.
        assert ((native == native_id) != (train_ids == train_id)).mean() < 0.002


def test_sunrgbd_classes_lie_where_the_picture_shows_them(root_of):
    """The stored file is shifted by one: read as it is, this floor would be a wall."""
    reader = open_reader("sunrgbd", str(root_of("sunrgbd")))
    (source,) = sources(reader)
    label = reader.native_label(source)
    names = {native.native_id: native.native_name for native in native_table("sunrgbd")}
    assert names[label[480, 500]] == "floor"
    assert names[label[90, 50]] == "wall"
    assert names[label[250, 350]] == "table"
    assert names[label[300, 170]] == "chair"


def plain_idd_label(path: Path) -> np.ndarray:
    """Draws polygons by counting the edges to the left of each pixel: (H, W) uint8."""
    annotation = json.loads(path.read_text())
    ids = {native.native_name: native.native_id for native in native_table("idd")}
    label = np.full((annotation["imgHeight"], annotation["imgWidth"]), ids["unlabeled"], np.uint8)
    for item in annotation["objects"]:
        if item["deleted"]:
            continue
        points = np.array(item["polygon"])
        left, top = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
        right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
        window = label[top:bottom, left:right]
        xs = left + np.arange(window.shape[1])
        ys = top + np.arange(window.shape[0])
        inside = np.zeros(window.shape, bool)
        for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if ay != by:
                crossed = (ay > ys) != (by > ys)
                inside ^= crossed[:, None] & (
                    xs < (ax + (ys - ay) / (by - ay) * (bx - ax))[:, None]
                )
        window[inside] = ids[item["label"]]
    return label


def test_idd_polygons(root_of):
    root = root_of("idd")
    reader = open_reader("idd", str(root))
    (source,) = sources(reader)
    label = reader.native_label(source)
    plain = plain_idd_label(root / source.label)
    assert label.shape == plain.shape == (1080, 1920)
    # Outlines belong to a polygon in one way of drawing and not in the other.
    assert (label == plain).mean() > 0.98
    window = np.ones((5, 5), np.uint8)
    interior = cv2.erode(plain, window) == cv2.dilate(plain, window)
    assert interior.mean() > 0.9
    assert (label == plain)[interior].mean() > 0.998


def test_all_samples_are_covered(shared_data):
    known = {*DATASETS, "bdd100k_small", "cityscapes_small", "mapillary_small"}
    assert {path.name for path in shared_data("samples").iterdir() if path.is_dir()} <= known
