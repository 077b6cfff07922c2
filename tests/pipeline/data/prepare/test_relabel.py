"""MSeg's decisions: both forms say the same, and a segment is what its dataset numbers."""

import csv
import gzip
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Source
from pipeline.data.pixels.checks import BadSample
from pipeline.data.prepare.relabel import (
    DECISIONS,
    Relabelling,
    load_relabelling,
    relabel,
    with_decisions,
    with_full_ade20k,
)
from pipeline.data.taxonomy import DATASETS, IGNORE, lookup_table, universal
from pipeline.errors import UserError
from tests.support.tiny_roots import encode, noise, write

REFERENCE = "reference/taxonomy/relabel"
"""The published decisions as flat tables, in the folder of shared data."""
LISTS = Path(__file__).resolve().parents[4] / "pipeline/data/taxonomy/relabel_files.tsv"
COLUMNS = "split\tparent\timage_stem\tsegment_id\tnative_class\tnew_universal_name\n"
MSEG_KEYS = {
    "ade20k": ("ade20k", "ade20k-v1"),
    "bdd100k": ("bdd",),
    "coco_panoptic": ("cocop", "cocopanoptic", "cocopanoptic-v1"),
    "mapillary": ("mapillary-public65",),
}
LINES = {
    "cityscapes": "seq{parent}_{stem}_{segment}.jpg",
    "idd": "seq{parent}_{stem}_{segment}.jpg",
    "mapillary": "mapillary_{stem}_{segment}.jpg",
}

SIZE = (8, 12)
TOP, LEFT = np.s_[:4], np.s_[:, :6]


def left_of(inside: int, outside: int) -> np.ndarray:
    """(8, 12) uint8: one id in the left half, another in the right."""
    label = np.full(SIZE, outside, np.uint8)
    label[LEFT] = inside
    return label


def two_segments(top: int, bottom: int, dtype=np.uint8) -> np.ndarray:
    """(8, 12): two segments, each from the left edge to the right one."""
    segments = np.full(SIZE, bottom, dtype)
    segments[TOP] = top
    return segments


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon; its edges are drawn, so the corners are pixels."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


TOP_HALF, BOTTOM_HALF = rectangle(0, 0, 11, 3), rectangle(0, 4, 11, 7)
RIGHT_HALF = rectangle(6, 0, 11, 7)


def polygons(*objects: dict) -> bytes:
    values = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": list(objects)}
    return json.dumps(values).encode()


@dataclass(frozen=True)
class Case:
    """One image of a dataset, and what is decided over one segment of it."""

    dataset: str
    row: str
    """The decision, as a line of a flat table."""
    files: dict[str, bytes]
    whole: bool = False
    """Whether the segment is all that the image has of the class, rather than its top half."""


def ade20k() -> Case:
    full = np.zeros((16, 24, 3), np.uint8)
    full[..., 0] = two_segments(28, 56).repeat(2, 0).repeat(2, 1)  # Blue: OpenCV writes BGR.
    full[..., 2] = 28
    return Case(
        "ade20k",
        "train\ttraining\tADE_train_00000001\t28\ttable\tdesk",
        {
            "images/training/ADE_train_00000001.jpg": encode(noise(*SIZE, 0), ".jpg"),
            "annotations/training/ADE_train_00000001.png": encode(left_of(16, 1), ".png"),
            "full/images/training/k/kitchen/ADE_train_00000001_seg.png": encode(full, ".png"),
        },
    )


def bdd100k() -> Case:
    return Case(
        "bdd100k",
        "train\ttrain\t3dc827e3-f3a359ce\t12\trider\tbicyclist",
        {
            "seg/images/train/3dc827e3-f3a359ce.jpg": encode(noise(*SIZE, 0), ".jpg"),
            "seg/labels/train/3dc827e3-f3a359ce_train_id.png": encode(left_of(12, 0), ".png"),
        },
        whole=True,
    )


def cityscapes() -> Case:
    stem = "aachen_000000_000019"
    return Case(
        "cityscapes",
        f"train\taachen\t{stem}_leftImg8bit\t2\trider\tmotorcyclist",
        {
            f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png": encode(noise(*SIZE, 0), ".png"),
            f"gtFine/train/aachen/{stem}_gtFine_labelIds.png": encode(left_of(25, 7), ".png"),
            f"gtFine/train/aachen/{stem}_gtFine_polygons.json": polygons(
                {"label": "road", "polygon": BOTTOM_HALF},
                {"label": "rider", "polygon": BOTTOM_HALF, "deleted": 1},
                {"label": "rider", "polygon": TOP_HALF},
            ),
        },
    )


def idd() -> Case:
    files = {}
    for drive in ("32", "33"):  # The same image name twice: the decision is over one of them.
        files[f"leftImg8bit/train/{drive}/597097_leftImg8bit.png"] = encode(noise(*SIZE, 0), ".png")
        files[f"gtFine/train/{drive}/597097_gtFine_polygons.json"] = polygons(
            {"id": 3, "label": "rider", "polygon": BOTTOM_HALF},
            {"id": 0, "label": "rider", "polygon": TOP_HALF},
            {"id": 9, "label": "car", "polygon": RIGHT_HALF},
        )
    return Case("idd", "train\t32\t597097_leftImg8bit\t0\trider\tbackpack", files)


def mapillary() -> Case:
    name = "_7CeLOWVbUdGKNuBoOtwvg"
    label = Image.fromarray(left_of(31, 2), "P")
    label.putpalette(list(range(256)) * 3)
    instances = two_segments(31 * 256, 31 * 256 + 1, np.uint16)
    case = Case(
        "mapillary",
        f"train\ttraining\t{name}\t7936\tWater\tfountain",
        {
            f"training/images/{name}.jpg": encode(noise(*SIZE, 0), ".jpg"),
            f"training/instances/{name}.png": encode(instances, ".png"),
        },
    )
    case.files[f"training/labels/{name}.png"] = png(label)
    return case


def coco_panoptic() -> Case:
    segments = np.full(SIZE, 70_001)
    segments[:, 6:], segments[:4, :6] = 5, 16_000_000
    bgr = np.stack([segments >> 16, segments >> 8 & 255, segments & 255], -1).astype(np.uint8)
    info = [{"id": 70_001, "category_id": 67}, {"id": 16_000_000, "category_id": 67}]
    info.append({"id": 5, "category_id": 1})
    index = {"annotations": [{"file_name": "000000000009.png", "segments_info": info}]}
    return Case(
        "coco_panoptic",
        "train\ttrain2017\t000000000009\t16000000\tdining table\tdesk",
        {
            "train2017/000000000009.jpg": encode(noise(*SIZE, 0), ".jpg"),
            "annotations/panoptic_train2017/000000000009.png": encode(bgr, ".png"),
            "annotations/panoptic_train2017.json": json.dumps(index).encode(),
        },
    )


def sunrgbd() -> Case:
    return Case(
        "sunrgbd",
        "train\ttrain\timg-000152\t4\tchair\tarmchair",  # A chair is 5 in the files.
        {
            "image/train/img-000152.jpg": encode(noise(*SIZE, 0), ".jpg"),
            "label37/train/img-000152.png": encode(left_of(5, 4), ".png"),
        },
        whole=True,
    )


CASES = (ade20k, bdd100k, cityscapes, idd, mapillary, coco_panoptic, sunrgbd)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def labelled(case: Case, folder: Path):
    """The reader, the image with the decision, its native label and its universal one."""
    reader, listing = prepared(case, folder)
    (source,) = (source for source in listing.sources if DECISIONS in source.extra)
    native = reader.native_label(source)
    return reader, source, native, lookup_table(case.dataset)[native]


def prepared(case: Case, folder: Path):
    """The reader, and the listing with the decision."""
    for name, data in case.files.items():
        write(folder / "root" / name, data)
    write(folder / "tables" / f"{case.dataset}.tsv", (COLUMNS + case.row + "\n").encode())
    table = load_relabelling(str(folder / "tables"), [case.dataset])[case.dataset]
    reader = open_reader(case.dataset, str(folder / "root"))
    listing = with_decisions(reader.listing("train"), "train", table)
    if case.dataset == "ade20k":
        listing = with_full_ade20k(listing, str(folder / "root" / "full"))
    return reader, listing


@pytest.mark.parametrize("make", CASES)
def test_a_segment_is_what_its_dataset_numbers(tmp_path, make):
    case = make()
    reader, source, native, label = labelled(case, tmp_path)
    before = label.copy()
    assert relabel(label, native, reader, source) == (1, 0)
    new = universal().id_of(case.row.rpartition("\t")[2])
    expected = np.zeros(SIZE, bool)
    # The right half is of another class by now, though the segment reaches into it.
    expected[LEFT] = True
    if not case.whole:
        expected[4:] = False
    assert np.array_equal(label == new, expected)
    assert np.array_equal(label[~expected], before[~expected])


@pytest.mark.parametrize("make", [ade20k, cityscapes, idd, mapillary, coco_panoptic])
def test_a_segment_that_is_not_there_changes_nothing(tmp_path, make):
    reader, source, native, label = labelled(make(), tmp_path)
    before = label.copy()
    decisions = [(99, natives, new) for _, natives, new in source.extra[DECISIONS]]
    source = replace(source, extra={**source.extra, DECISIONS: decisions})
    assert relabel(label, native, reader, source) == (0, 1)
    assert np.array_equal(label, before)


def test_a_polygon_goes_by_its_id_before_its_position(tmp_path):
    case = cityscapes()
    (path,) = (name for name in case.files if name.endswith(".json"))
    case.files[path] = polygons(
        {"id": 7, "label": "rider", "polygon": BOTTOM_HALF},
        {"id": 2, "label": "rider", "polygon": TOP_HALF},
        {"id": 5, "label": "rider", "polygon": rectangle(0, 0, 11, 7)},
        {"id": 4, "label": "rider", "polygon": TOP_HALF[:2]},
    )
    reader, listing = prepared(case, tmp_path)
    masks = reader.segment_masks(listing.sources[0], {2, 4, 7})
    assert masks is not None
    assert masks.keys() == {2, 7}  # Two points are no area.
    assert np.array_equal(masks[2], two_segments(1, 0).astype(bool))
    assert np.array_equal(masks[7], two_segments(0, 1).astype(bool))


@pytest.mark.parametrize(
    ("make", "end"), [(cityscapes, "polygons.json"), (mapillary, "instances"), (ade20k, "_seg.png")]
)
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_segments_that_cannot_be_read_make_a_bad_sample(tmp_path, make, end, damage):
    case = make()
    reader, listing = prepared(case, tmp_path)
    (path,) = (tmp_path / "root" / name for name in case.files if end in name)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    source = listing.sources[0]
    native = reader.native_label(source)
    with pytest.raises(BadSample):
        relabel(native.copy(), native, reader, source)


def test_every_form_of_sunrgbd_finds_its_decisions():
    table = Relabelling("sunrgbd")
    table.add("train", "train", "img-000152", 4, (5,), 1)
    table.add("val", "test", "img-000152", 4, (5,), 2)

    def found(split: str, image: str, **extra: int) -> list[int]:
        return [new for _, _, new in table.of(Source("k", image, "l", extra), split)]

    assert found("train", "image/train/img-000152.jpg") == [1]
    assert found("val", "image/test/img-000152.jpg") == [2]
    assert found("train", "SUNRGBD-train_images/img-005202.jpg") == [1]
    assert found("train", "SUNRGBD/kv1/b3/NYU0001/image/NYU0001.jpg", index=5201) == [1]
    assert found("val", "SUNRGBD/kv2/kinect2data/1/image/0000103.jpg", index=151) == [2]
    # A list in another order than the official one: no decision can be trusted.
    assert found("train", "SUNRGBD/kv2/kinect2data/1/image/0000103.jpg", index=151) == []


def test_unlabelled_is_a_decision_and_several_classes_may_share_one(tmp_path):
    row = "train\t\timg-000152\t4\tchair|table\tunlabeled"
    reader, listing = prepared(Case("sunrgbd", row, sunrgbd().files, whole=True), tmp_path)
    native = np.array([[5, 7, 4]], np.uint8)
    label = np.array([[1, 2, 3]], np.uint8)
    (source,) = listing.sources
    assert relabel(label, native, reader, source) == (1, 0)
    assert label.tolist() == [[IGNORE, IGNORE, 3]]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_checkout_says_the_same_as_the_flat_table(tmp_path, shared_data, dataset):
    reference = shared_data(REFERENCE)
    flat = load_relabelling(str(reference), [dataset])[dataset]
    with gzip.open(reference / f"{dataset}.tsv.gz", "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(flat) == len(rows)
    with LISTS.open() as file:
        keys = MSEG_KEYS.get(dataset, (dataset,))
        lists = [row for row in csv.DictReader(file, delimiter="\t") if row["mseg_key"] in keys]
    # The lists of a dataset that decide the same for the same classes are one here: which of two
    # files a line is in says nothing.
    found = load_lists(tmp_path, dataset, lists, rows)
    assert {k: sorted(v) for k, v in found.items()} == {
        k: sorted(v) for k, v in flat.decisions.items()
    }


def load_lists(folder: Path, dataset: str, lists: list[dict], rows: list[dict]) -> dict:
    """Writes the rows as a checkout has them, and loads that."""
    from pipeline.data.prepare.relabel import _native_ids, _natives_of

    lines: dict[tuple, list[str]] = {}
    for row in rows:
        line = LINES.get(dataset, "{stem}_{segment}.png").format(
            parent=row["parent"], stem=row["image_stem"], segment=row["segment_id"]
        )
        natives = _native_ids(dataset, row["native_class"])
        key = row["split"], natives, row["new_universal_name"] or "unlabeled"
        lines.setdefault(key, []).append(line)
    for entry in lists:
        path = folder / "mseg/relabeled_data" / entry["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        natives = _natives_of(dataset, entry["original_name"], entry["file"])
        key = entry["split"], natives, entry["new_name"] or "unlabeled"
        path.write_text("\n".join(lines.pop(key, [])))
    assert not lines, list(lines)[:3]
    return load_relabelling(str(folder), [dataset])[dataset].decisions


def test_a_real_image_is_listed(shared_data):
    found = load_relabelling(str(shared_data(REFERENCE)), ["coco_panoptic"])["coco_panoptic"]
    decided = found.decisions["val", "", "000000000139"]
    assert [new for segment, _, new in decided if segment == 6068135] == [universal().id_of("lamp")]


def test_tables_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"relabel=.*no decisions over idd.*mseg-api"):
        load_relabelling(str(tmp_path), ["idd"])
    table = tmp_path / "idd.tsv"
    row = "train\t32\t597097_leftImg8bit\t0\trider\tbackpack"
    for text, message in [
        (row, r"lacks the column split"),
        (COLUMNS + row.replace("rider", "riders"), r"native_class='riders': not a class of idd"),
        (COLUMNS + row.replace("backpack", "backpak"), r"'backpak'.*did you mean 'backpack'"),
        (COLUMNS + row.replace("\t0\t", "\tx\t"), r"no table of relabelled segments.*'x'"),
    ]:
        table.write_text(text + "\n")
        with pytest.raises(UserError, match=message):
            load_relabelling(str(tmp_path), ["idd"])
    table.unlink()
    packed = gzip.compress(COLUMNS.encode())
    for data in (packed[:-9], packed[:10] + b"\xff" * 40, packed[:-8] + bytes(8), b"\x1f\x8b"):
        (tmp_path / "idd.tsv.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"idd\.tsv\.gz: is no table"):
            load_relabelling(str(tmp_path), ["idd"])


def test_a_line_that_names_no_segment_is_refused(tmp_path):
    path = tmp_path / "mseg/relabeled_data/idd_rider/idd_val_idd_rider_to_rider-other.txt"
    for line, shown in ((b"nonsense", "nonsense"), (b"\xff\xfe", r"\\\\xff\\\\xfe")):
        write(path, b"seq4_597097_leftImg8bit_7.jpg\n" + line + b"\n")
        with pytest.raises(UserError, match=rf"line 2: '{shown}' names no segment"):
            load_relabelling(str(tmp_path), ["idd"])


def test_the_fingerprint_follows_the_decisions(tmp_path):
    prints = set()
    for new in ("backpack", "bag", "bag"):
        row = f"train\t32\t597097_leftImg8bit\t0\trider\t{new}\n"
        (tmp_path / "idd.tsv").write_text(COLUMNS + row)
        prints.add(load_relabelling(str(tmp_path / "idd.tsv"), ["idd"])["idd"].fingerprint)
    assert len(prints) == 2
