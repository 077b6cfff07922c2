from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Reader, Source
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from tests.support.cpu_cost import costs_at_most

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
        ([{"label": "sky", "polygon": [[0], [1], [2]]}], {}, "must be a list of points"),
        ([{"polygon": [[0, 0], [1, 1], [2, 2]]}], {}, r"objects\[0\] has no label"),
        (["sky"], {}, r"objects\[0\] is no object"),
        ([], {"imgWidth": 60000, "imgHeight": 60000}, "60000 x 60000"),
        ([], {"imgWidth": 0}, "0 x 3"),
        ([], {"imgWidth": "wide"}, "imgWidth=wide: must be a number"),
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


def test_a_root_with_both_parts_gives_both(put: Put, tmp_path: Path):
    polygons = {"imgHeight": 1, "imgWidth": 1, "objects": []}
    for top, suffix, drive in (("IDD_Segmentation", "png", "0"), ("idd20kII", "jpg", "201")):
        for number in (1, 2):
            name = f"frame{number:04d}"
            put(f"{top}/leftImg8bit/train/{drive}/{name}_leftImg8bit.{suffix}")
            put(f"{top}/gtFine/train/{drive}/{name}_gtFine_polygons.json", polygons)
    put("idd20kII/leftImg8bit/train/0/frame0001_leftImg8bit.jpg")
    put("idd20kII/gtFine/train/0/frame0001_gtFine_polygons.json", polygons)
    reader = open_reader("idd", str(tmp_path))
    listing = reader.listing("train")
    assert [source.image.split("/")[0] for source in listing.sources] == [
        "IDD_Segmentation",
        "IDD_Segmentation",
        "idd20kII",
        "idd20kII",
    ]
    ((name, reason),) = ((item.name, item.reason) for item in listing.left_out)
    assert name == "idd20kII/leftImg8bit/train/0/frame0001_leftImg8bit.jpg"
    assert "IDD_Segmentation/leftImg8bit/train/0/frame0001" in reason
    assert listing.notes == ()
    assert reader.native_label(listing.sources[3]).tolist() == [[35]]
    part_i = open_reader("idd", str(tmp_path / "IDD_Segmentation")).listing("train")
    assert "2 samples with image and label, 6993 published" in part_i.notes[0]
    assert open_reader("idd", str(tmp_path / "idd20kII")).listing("train").notes == ()


def test_two_copies_of_a_part_are_refused(put: Put, tmp_path: Path):
    for top in ("IDD_Segmentation", "copy"):
        put(f"{top}/leftImg8bit/train/0/1_leftImg8bit.png")
        put(f"{top}/gtFine/train/0/1_gtFine_polygons.json", {})
    with pytest.raises(UserError, match="must hold the dataset once"):
        open_reader("idd", str(tmp_path))


SQUARE = [[0, 0], [3, 0], [3, 2]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "must hold one JSON object"),
        ({"imgWidth": 4, "objects": []}, "has no imgHeight"),
        ({"imgHeight": 3, "imgWidth": 4}, "has no list of objects"),
        ({"imgHeight": float("inf"), "imgWidth": 4, "objects": []}, "imgHeight=inf"),
        ({"imgHeight": "3", "imgWidth": 4, "objects": []}, "imgHeight=3"),
        (
            {"objects": [{"label": "car", "polygon": SQUARE}, {"label": "car"}]},
            r"\[1\] has no polygon",
        ),
        ({"objects": [{"polygon": SQUARE}]}, r"objects\[0\] has no label"),
        ({"objects": [5]}, r"objects\[0\] is no object"),
        ({"objects": [{"label": 5, "polygon": SQUARE}]}, r"objects\[0\]\.label"),
        ({"objects": [{"label": "car", "polygon": 5}]}, r"objects\[0\]\.polygon: must be a list"),
        (
            {"objects": [{"label": "car", "polygon": [1, 2, 3]}]},
            r"polygon: must be a list of points",
        ),
        (
            {"objects": [{"label": "car", "polygon": [[1, 10**400]] * 3}]},
            "must be a list of points",
        ),
        ({"objects": [{"label": "car", "polygon": [[1, 1e300]] * 3}]}, "too far"),
    ],
    ids=range(14),
)
def test_what_is_wrong_with_a_file_is_named_with_its_place(put, tmp_path, content, words: str):
    if isinstance(content, dict) and len(content) == 1:
        content = {"imgHeight": 3, "imgWidth": 4, **content}
    put("leftImg8bit/train/0/024541_leftImg8bit.png")
    put(LABEL, content)
    reader = open_reader("idd", str(tmp_path))
    (source,) = reader.listing("train").sources
    with pytest.raises(BadSample, match=rf"024541_gtFine_polygons\.json.*{words}"):
        reader.native_label(source)


@pytest.mark.parametrize("per_object", [300_000, 3])
def test_polygons_of_many_points_are_refused_in_time(put, tmp_path, per_object: int):
    corners = [[0, 0], [3, 2], [1, 1]] * (per_object // 3)
    objects = [{"label": "car", "polygon": corners}] * (300_000 // per_object)
    reader, source = opened(put, tmp_path, objects, imgHeight=4000, imgWidth=6000)
    refused = pytest.raises(BadSample, match="more points than can be drawn in time")
    with costs_at_most(400), refused:
        reader.native_label(source)
