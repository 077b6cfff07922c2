from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.datasets import BadSample, Reader, Source, open_reader

from .conftest import Put

LABEL = "gtFine/train/0/024541_gtFine_polygons.json"


def box(label: str, x0: float, y0: float, x1: float, y1: float, **more: Any) -> dict[str, Any]:
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    return {"label": label, "polygon": corners, "deleted": 0, **more}


def opened(put: Put, root: Path, objects: list[Any], **size: Any) -> tuple[Reader, Source]:
    put("leftImg8bit/train/0/024541_leftImg8bit.png")
    put(LABEL, {"imgHeight": 3, "imgWidth": 4, **size, "objects": objects})
    reader = open_reader("idd", str(root))
    (source,) = reader.listing("train").sources
    return reader, source


def test_later_polygons_cover_earlier_ones(put: Put, tmp_path: Path):
    objects = [
        box("road", 0, 1, 3, 2),
        box("car", 1, 1, 2, 1),
        box("sky", 2.0, 0.0, 2.0, 1.0),
    ]
    reader, source = opened(put, tmp_path, objects)
    label = reader.native_label(source)
    assert source.key == "train__0__024541"
    assert label.dtype == np.uint8
    assert label.tolist() == [[35, 35, 33, 35], [0, 12, 33, 0], [0, 0, 0, 0]]


def test_deleted_and_degenerate_polygons_are_skipped(put: Put, tmp_path: Path):
    objects = [
        box("road", 0, 0, 3, 2),
        box("car", 0, 0, 3, 2, deleted=1),
        {"label": "person", "polygon": [[0, 0], [3, 2]]},
        {"label": "no such class", "polygon": [], "deleted": 0},
    ]
    reader, source = opened(put, tmp_path, objects)
    assert np.unique(reader.native_label(source)).tolist() == [0]


def test_group_names_fall_back_and_polegroup_does_not(put: Put, tmp_path: Path):
    objects = [box("cargroup", 0, 0, 1, 2), box("polegroup", 2, 0, 3, 2)]
    reader, source = opened(put, tmp_path, objects)
    assert reader.native_label(source).tolist() == [[12, 12, 27, 27]] * 3


def test_points_may_lie_outside(put: Put, tmp_path: Path):
    reader, source = opened(put, tmp_path, [box("sky", -5.5, -2, 9.25, 0)])
    assert reader.native_label(source).tolist() == [[33] * 4, [35] * 4, [35] * 4]


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ([box("autorikshaw", 0, 0, 1, 1)], {}, "did you mean 'autorickshaw'"),
        ([box("sky", 0, 0, float("nan"), 1)], {}, "too far"),
        ([box("sky", 0, 0, 1e30, 1)], {}, "too far"),
        ([{"label": "sky", "polygon": [[0], [1], [2]]}], {}, "cannot be read"),
        ([{"polygon": [[0, 0], [1, 1], [2, 2]]}], {}, "cannot be read"),
        (["sky"], {}, "cannot be read"),
        ([], {"imgWidth": 60000, "imgHeight": 60000}, "60000 x 60000"),
        ([], {"imgWidth": 0}, "0 x 3"),
        ([], {"imgWidth": "wide"}, "cannot be read"),
    ],
)
def test_bad_polygons(put: Put, tmp_path: Path, objects: list[Any], size: Any, message: str):
    reader, source = opened(put, tmp_path, objects, **size)
    with pytest.raises(BadSample, match=rf"024541_gtFine_polygons\.json.*{message}"):
        reader.native_label(source)


def test_a_file_that_is_no_json(put: Put, tmp_path: Path):
    reader, source = opened(put, tmp_path, [])
    put(LABEL, b'{"imgHeight": 3, "obj')
    with pytest.raises(BadSample, match="024541"):
        reader.native_label(source)


@pytest.mark.parametrize("top", ["IDD_Segmentation", "idd20kII"])
def test_both_parts_and_ids_that_repeat(put: Put, tmp_path: Path, top: str):
    suffix = ".png" if top == "IDD_Segmentation" else ".jpg"
    for drive in ("119", "201"):
        put(f"{top}/leftImg8bit/val/{drive}/frame0029_leftImg8bit{suffix}")
        polygons = {"imgHeight": 1, "imgWidth": 1, "objects": []}
        put(f"{top}/gtFine/val/{drive}/frame0029_gtFine_polygons.json", polygons)
    listing = open_reader("idd", str(tmp_path)).listing("val")
    assert [s.key for s in listing.sources] == ["val__119__frame0029", "val__201__frame0029"]
    assert listing.left_out == ()
