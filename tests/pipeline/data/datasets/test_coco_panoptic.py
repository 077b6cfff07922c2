from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError

from .conftest import Put, png

NAME = "000000000139"
PNG = f"annotations/panoptic_val2017/{NAME}.png"
JSON = "annotations/panoptic_val2017.json"
# Segments that differ in one byte each: a wrong byte order or a narrow type would mix them.
SEGMENTS = {1: 1, 256: 2, 65536: 200, 0xFFFFFF: 62, 0x010203: 11}


def colours(ids: list[list[int]]) -> np.ndarray:
    pixels = np.array(ids)
    return np.stack([pixels % 256, pixels // 256 % 256, pixels // 65536], axis=-1)


def index(segments: dict[int, int], name: str = NAME) -> dict[str, Any]:
    infos = [
        {"id": i, "category_id": c, "iscrowd": 1, "bbox": [0, 0, 1, 1], "area": 1}
        for i, c in segments.items()
    ]
    annotation = {"segments_info": infos, "file_name": f"{name}.png", "image_id": int(name)}
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "url": "x"}],
        "images": [{"id": int(name), "file_name": f"{name}.jpg", "height": 2}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "person", "isthing": 1}],
    }


def put_one(put: Put, ids: list[list[int]], segments: dict[int, int]) -> None:
    put(f"val2017/{NAME}.jpg")
    put(PNG, png(colours(ids), "RGB"))
    put(JSON, index(segments))


def test_pixels_become_category_ids(put: Put, tmp_path: Path):
    put_one(put, [[0, 1, 256], [65536, 0xFFFFFF, 0x010203]], SEGMENTS)
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    assert (source.key, source.label) == (NAME, PNG)
    assert source.extra["category_ids"] == list(SEGMENTS.values())
    label = reader.native_label(source)
    assert label.dtype == np.uint8
    assert label.tolist() == [[255, 1, 2], [200, 62, 11]]
    assert reader.listing("train").sources == ()


@pytest.mark.parametrize("category", [12, 1000, -1, 255])
def test_a_category_outside_the_list_is_a_bad_sample(put: Put, tmp_path: Path, category: int):
    put_one(put, [[5, 8]], {5: category, 8: 1})
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    with pytest.raises(BadSample, match=rf"{NAME}\.png.*(not in the table|not COCO's)"):
        reader.native_label(source)


def test_a_label_of_nothing(put: Put, tmp_path: Path):
    put_one(put, [[0, 0]], {})
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    assert reader.native_label(source).tolist() == [[255, 255]]


@pytest.mark.parametrize("segment_id", [2, 0xFFFFFF])
def test_a_segment_without_an_entry_is_refused(put: Put, tmp_path: Path, segment_id: int):
    put_one(put, [[1, segment_id, segment_id]], {1: 1})
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    with pytest.raises(BadSample, match=rf"{NAME}\.png: 2 pixels"):
        reader.native_label(source)


def test_a_palette_png_is_refused(put: Put, tmp_path: Path):
    put_one(put, [[1]], {1: 1})
    put(PNG, png([[1]], "P"))
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    with pytest.raises(BadSample, match="8-bit RGB"):
        reader.native_label(source)


def test_unpaired_files_are_named(put: Put, tmp_path: Path):
    put_one(put, [[1]], {1: 1})
    put("val2017/000000000001.jpg")
    put("annotations/panoptic_val2017/000000000002.png", png(colours([[1]]), "RGB"))
    put("val2017/000000000002.jpg")
    listing = open_reader("coco_panoptic", str(tmp_path)).listing("val")
    assert [source.key for source in listing.sources] == [NAME]
    assert listing.left_out == (
        LeftOut("annotations/panoptic_val2017/000000000002.png", "no entry in the JSON"),
        LeftOut("val2017/000000000001.jpg", "no label"),
        LeftOut("val2017/000000000002.jpg", "its label has no entry in the JSON"),
    )


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"annotations": [{"file_name": "a.png"}]}'])
def test_a_damaged_index_is_named(put: Put, tmp_path: Path, content: bytes):
    put_one(put, [[1]], {1: 1})
    put(JSON, content)
    with pytest.raises(UserError, match=r"panoptic_val2017\.json"):
        open_reader("coco_panoptic", str(tmp_path)).listing("val")


def test_a_missing_index_is_named(put: Put, tmp_path: Path):
    put_one(put, [[1]], {1: 1})
    put("train2017/000000000009.jpg")
    with pytest.raises(UserError, match=r"panoptic_train2017\.json"):
        open_reader("coco_panoptic", str(tmp_path)).listing("train")


@pytest.mark.parametrize(
    ("infos", "words"),
    [
        ([{"id": -1, "category_id": 1}], r"segments_info\[0\]\.id=-1"),
        ([{"id": 1 << 40, "category_id": 1}], r"\.id=1099511627776"),
        ([{"id": float("inf"), "category_id": 1}], r"\.id=inf"),
        ([{"id": float("nan"), "category_id": 1}], r"\.id=nan"),
        ([{"id": "1", "category_id": 1}], r"\.id='1': not COCO's"),
        ([{"id": 1, "category_id": 1e400}], r"\.category_id=inf"),
        ([{"category_id": 1}], r"segments_info\[0\] has no id"),
        ([{"id": 1}], r"segments_info\[0\] has no category_id"),
        ([{"id": 1, "category_id": 1}, {"id": 1, "category_id": 2}], "comes twice"),
        (5, "has no list segments_info"),
    ],
)
def test_one_odd_annotation_is_one_bad_sample(put: Put, tmp_path: Path, infos, words: str):
    put_one(put, [[1]], {1: 1})
    put("val2017/000000000002.jpg")
    put("annotations/panoptic_val2017/000000000002.png", png(colours([[1]]), "RGB"))
    good = {"file_name": f"{NAME}.png", "segments_info": [{"id": 1, "category_id": 1}]}
    odd = {"file_name": "000000000002.png", "segments_info": infos}
    put(JSON, {"annotations": [good, odd]})
    reader = open_reader("coco_panoptic", str(tmp_path))
    first, second = sorted(reader.listing("val").sources, key=lambda source: source.key == NAME)
    assert reader.native_label(second).tolist() == [[1]]
    with pytest.raises(
        BadSample, match=rf"000000000002\.png: the JSON's annotations\[1\].*{words}"
    ):
        reader.native_label(first)


@pytest.mark.parametrize(
    "entry",
    [
        {"file_name": "000000000002.png"},
        {"segments_info": [{"id": 1, "category_id": 1}]},
        {"file_name": 2, "segments_info": []},
        {"category_id": 1, "file_name": "000000000002.png", "segments_info": []},
        {"a": 1},
        None,
        "000000000002.png",
    ],
)
def test_an_entry_that_names_no_file_or_no_segments_ends_no_other(put: Put, tmp_path: Path, entry):
    put_one(put, [[1]], {1: 1})
    put("val2017/000000000002.jpg")
    put("annotations/panoptic_val2017/000000000002.png", png(colours([[1]]), "RGB"))
    good = {"file_name": f"{NAME}.png", "segments_info": [{"id": 1, "category_id": 1}]}
    put(JSON, {"annotations": [entry, good]})
    listing = open_reader("coco_panoptic", str(tmp_path)).listing("val")
    assert [source.key for source in listing.sources] == [NAME]
    assert LeftOut("annotations/panoptic_val2017/000000000002.png", "no entry in the JSON") in (
        listing.left_out
    )


def test_two_annotations_of_one_image_that_differ(put: Put, tmp_path: Path):
    put_one(put, [[1]], {1: 1})
    infos = [[{"id": 1, "category_id": 1}], [{"id": 1, "category_id": 2}]]
    put(JSON, {"annotations": [{"file_name": f"{NAME}.png", "segments_info": i} for i in infos]})
    reader = open_reader("coco_panoptic", str(tmp_path))
    (source,) = reader.listing("val").sources
    with pytest.raises(BadSample, match="and differ"):
        reader.native_label(source)


def test_an_index_of_many_levels_is_named(put: Put, tmp_path: Path):
    put_one(put, [[1]], {1: 1})
    put(JSON, b"[" * 200_000)
    with pytest.raises(UserError, match=r"panoptic_val2017\.json.*nested too deeply"):
        open_reader("coco_panoptic", str(tmp_path)).listing("val")
