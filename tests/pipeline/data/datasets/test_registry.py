import logging
import pickle
from pathlib import Path

import pytest

from pipeline.data.datasets import READERS, open_reader
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy import DATASETS
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

from .conftest import Put, png

CITY = "aachen/aachen_000000_000019"
# For each dataset the least that makes a root of one sample: path -> mode of its PNG, or a JSON.
SMALLEST = {
    "ade20k": {"images/training/A.jpg": None, "annotations/training/A.png": "L"},
    "bdd100k": {"images/10k/train/a.jpg": None, "labels/sem_seg/colormaps/train/a.png": "P"},
    "cityscapes": {
        f"leftImg8bit/train/{CITY}_leftImg8bit.png": None,
        f"gtFine/train/{CITY}_gtFine_labelIds.png": "L",
        f"gtFine/train/{CITY}_gtFine_polygons.json": {},
    },
    "coco_panoptic": {
        "train2017/000000000009.jpg": None,
        "annotations/panoptic_train2017/000000000009.png": "RGB",
        "annotations/panoptic_train2017.json": {
            "annotations": [
                {"file_name": "000000000009.png", "segments_info": [{"id": 1, "category_id": 1}]}
            ]
        },
    },
    "idd": {
        "leftImg8bit/train/0/1_leftImg8bit.png": None,
        "gtFine/train/0/1_gtFine_polygons.json": {"imgHeight": 1, "imgWidth": 1, "objects": []},
    },
    "mapillary": {"training/images/a.jpg": None, "training/v1.2/labels/a.png": "P"},
    "sunrgbd": {"image/train/img-000001.jpg": None, "label37/train/00000001.png": "L"},
}
PIXELS = {"L": [[1]], "P": [[1]], "RGB": [[[1, 0, 0]]]}


def put_dataset(put: Put, dataset: str, top: str = "") -> None:
    for path, content in SMALLEST[dataset].items():
        put(top + path, png(PIXELS[content], content) if isinstance(content, str) else content)


def test_registry_is_complete():
    assert tuple(READERS) == DATASETS == tuple(SMALLEST)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("where", ["root", "folder above", "folder within"])
def test_opens_the_root_or_its_neighbours(put: Put, tmp_path: Path, dataset: str, where: str):
    put_dataset(put, dataset, top="here/")
    folder = tmp_path / "here" / next(iter(SMALLEST[dataset])).partition("/")[0]
    root = {"root": tmp_path / "here", "folder above": tmp_path, "folder within": folder}[where]
    reader = pickle.loads(pickle.dumps(open_reader(dataset, str(root))))
    assert reader.name == dataset
    (source,) = reader.listing("train").sources
    assert reader.native_label(source).shape == (1, 1)
    assert reader.root.exists(source.image)


@pytest.mark.parametrize("dataset", DATASETS)
def test_reads_from_s3(put: Put, tmp_path: Path, s3_bucket: str, dataset: str):
    put_dataset(put, dataset)
    bucket = open_storage(f"{s3_bucket}/raw/{dataset}")
    for entry in open_storage(str(tmp_path)).list():
        bucket.upload(entry.path, tmp_path / entry.path)
    reader = open_reader(dataset, f"{s3_bucket}/raw/{dataset}")
    local = open_reader(dataset, str(tmp_path))
    assert reader.listing("train") == local.listing("train")
    assert reader.listing("val").sources == ()
    (source,) = reader.listing("train").sources
    assert (reader.native_label(source) == local.native_label(source)).all()


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("other", DATASETS)
def test_a_root_of_another_dataset_is_recognised(
    put: Put, tmp_path: Path, dataset: str, other: str
):
    put_dataset(put, other)
    recognised = [
        name for name, cls in READERS.items() if cls.recognises(open_storage(str(tmp_path)))
    ]
    assert recognised == [other]
    if dataset != other:
        with pytest.raises(UserError, match=f"roots.{dataset}=.*looks like {other};"):
            open_reader(dataset, str(tmp_path))


def test_unknown_dataset(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'cityscapes'"):
        open_reader("citiscapes", str(tmp_path))


def test_missing_root(tmp_path: Path, s3_bucket: str):
    for root in (f"{tmp_path}/nowhere", f"{s3_bucket}/nowhere"):
        with pytest.raises(UserError, match=r"roots\.idd=.*does not exist or is empty"):
            open_reader("idd", root)


def test_a_root_of_no_dataset(put: Put, tmp_path: Path):
    put("photos/1.jpg")
    with pytest.raises(UserError, match=r"must hold images/\{training.*it holds photos"):
        open_reader("ade20k", str(tmp_path))


def test_a_root_that_holds_two(put: Put, tmp_path: Path):
    put_dataset(put, "ade20k", top="one/")
    put_dataset(put, "ade20k", top="two/")
    with pytest.raises(UserError, match=r"hold the dataset once: give one of .*one, .*two"):
        open_reader("ade20k", str(tmp_path))


def test_a_large_listing_asks_no_more_often_than_a_small_one(put: Put, s3_bucket: str, caplog):
    """In S3 each question is a round trip: a listing has a page of 1000 names in one."""
    questions = []
    for count in (3, 60):
        storage = open_storage(f"{s3_bucket}/{count}")
        for number in range(count):
            storage.write(f"images/training/ADE_train_{number:08d}.jpg", b"")
            storage.write(f"annotations/training/ADE_train_{number:08d}.png", b"")
        with caplog.at_level(logging.DEBUG, "botocore.endpoint"):
            caplog.clear()
            listing = open_reader("ade20k", storage.uri).listing("train")
        assert len(listing.sources) == count
        questions.append(sum("Making request" in r.message for r in caplog.records))
    assert 0 < questions[1] <= questions[0] + 4


@pytest.mark.parametrize(
    ("dataset", "label", "unknown"),
    [
        ("ade20k", png([[1, 151]]), 151),
        ("bdd100k", png([[1, 19]], "P"), 19),
        ("cityscapes", png([[7, 34]]), 34),
        ("mapillary", png([[1, 66]], "P"), 66),
        ("sunrgbd", png([[1, 38]]), 38),
    ],
)
def test_an_id_outside_the_table_is_a_bad_sample(
    put: Put, tmp_path: Path, dataset: str, label: bytes, unknown: int
):
    put_dataset(put, dataset)
    reader = open_reader(dataset, str(tmp_path))
    (source,) = reader.listing("train").sources
    assert reader.native_label(source).size == 1
    put(source.label, label)
    with pytest.raises(BadSample, match=rf"ids {unknown}: not in the table of {dataset}"):
        reader.native_label(source)
