"""SUN RGB-D as it is given away, and as ankurhanda numbers it. The .mat files are real ones."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from tests.support.official_archives import below, write_archive

from .conftest import Put, jpg, png

PREFIX = "/n/fs/sun3d/data/SUNRGBD/"
SCENES = {
    "kv2/kinect2data/000002_2014-05-26_rgbf000103-resize": "0000103.jpg",
    "kv1/NYUdata/NYU0001": "NYU0001.jpg",
    "xtion/sun3ddata/hotel/hotel_1": "0000001-000000000000.jpg",
    "realsense/lg/2014_10_21-18_20_21-1311000073": "0000060.jpg",
}
LABELS = [np.arange(6, dtype=np.uint8).reshape(2, 3) + 10 * n for n in range(4)]
TRAIN, TEST = [1, 3], [0, 2]


def as_object(items: list[str]) -> np.ndarray:
    cell = np.empty((1, len(items)), object)
    cell[0] = items
    return cell


def write_labels(path: Path, labels: list[np.ndarray], top: str = "SUNRGBD2Dseg") -> None:
    """As MATLAB saves a 1xN struct array in version 7.3: references to transposed matrices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        references = []
        for number, label in enumerate(labels):
            stored = file.create_dataset(f"#refs#/{number}", data=label.T, compression="gzip")
            references.append(stored.ref)
        column = np.array(references, h5py.ref_dtype).reshape(-1, 1)
        file.create_dataset(f"{top}/seglabel", data=column, dtype=h5py.ref_dtype)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")


def write_meta(path: Path, paths: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = np.zeros((1, len(paths)), [("sequenceName", "O"), ("rgbname", "O"), ("rgbpath", "O")])
    for number, text in enumerate(paths):
        meta[0, number] = ("x", text.rpartition("/")[2], text)
    scipy.io.savemat(path, {"SUNRGBDMeta": meta})


def write_meta_73(path: Path, paths: list[str]) -> None:
    with h5py.File(path, "w") as file:
        letters = [np.array([[ord(c)] for c in text], np.uint16) for text in paths]
        refs = [file.create_dataset(f"#refs#/{n}", data=x).ref for n, x in enumerate(letters)]
        column = np.array(refs, h5py.ref_dtype).reshape(-1, 1)
        file.create_dataset("SUNRGBDMeta/rgbpath", data=column, dtype=h5py.ref_dtype)


def write_official(put: Put, root: Path, top: str = "", toolbox: str = "SUNRGBDtoolbox") -> Path:
    for scene, name in SCENES.items():
        put(f"{top}SUNRGBD/{scene}/image/{name}", jpg(2, 3))
        put(f"{top}SUNRGBD/{scene}/depth/{name.replace('.jpg', '.png')}", png([[1]]))
        put(f"{top}SUNRGBD/{scene}/seg.mat", b"MATLAB 5.0")
    folder = root / top / toolbox
    write_labels(folder / "Metadata/SUNRGBD2Dseg.mat", LABELS)
    images = [f"{PREFIX}{scene}/image/{name}" for scene, name in SCENES.items()]
    # Real ones have a doubled slash here and there, and the splits some at their ends.
    images[1] = images[1].replace("SUNRGBD/", "SUNRGBD//")
    write_meta(folder / "Metadata/SUNRGBDMeta.mat", images)
    scenes = [f"{PREFIX}{scene}" for scene in SCENES]
    scenes[3] += "/"
    lists = {
        "alltrain": as_object([scenes[n] for n in TRAIN]),
        "alltest": as_object([scenes[n] for n in TEST]),
    }
    (folder / "traintestSUNRGBD").mkdir()
    scipy.io.savemat(folder / "traintestSUNRGBD/allsplit.mat", lists)
    return root / top


def check(root: str) -> None:
    reader = open_reader("sunrgbd", root)
    for split, numbers in (("train", TRAIN), ("val", TEST)):
        listing = reader.listing(split)
        assert listing.left_out == ()
        found = {}
        for source in listing.sources:
            (number,) = (n for n, scene in enumerate(SCENES) if f"/{scene}/image/" in source.image)
            assert source.image.endswith(list(SCENES.values())[number])
            assert source.key.startswith(f"{split}__{source.image.split('SUNRGBD/')[1][:3]}")
            found[number] = reader.native_label(source)
        assert sorted(found) == numbers
        for number, label in found.items():
            expected = np.where(LABELS[number] <= 37, LABELS[number], 255)
            np.testing.assert_array_equal(label, expected)
            assert label.flags.c_contiguous


@pytest.mark.parametrize("toolbox", ["SUNRGBDtoolbox", "SUNRGBDtoolbox/SUNRGBDtoolbox"])
@pytest.mark.parametrize("where", ["root", "folder above", "SUNRGBD", "SUNRGBDtoolbox"])
def test_official(put: Put, tmp_path: Path, toolbox: str, where: str):
    top = write_official(put, tmp_path, "OFFICIAL_SUNRGBD/", toolbox)
    roots = {"root": top, "folder above": tmp_path}
    check(str(roots.get(where, top / where)))


def test_official_in_its_zips(put: Put, tmp_path: Path):
    write_official(put, tmp_path / "plain", toolbox="SUNRGBDtoolbox")
    for scene, name in SCENES.items():
        put(f"plain/SUNRGBD/{scene}/image/{name}", jpg(2, 3))
    for folder in ("SUNRGBD", "SUNRGBDtoolbox"):
        write_archive(tmp_path / f"zips/{folder}.zip", below(tmp_path / "plain", folder))
    check(str(tmp_path / "zips"))


def test_official_in_s3(put: Put, tmp_path: Path, s3_bucket: str):
    from tests.support.official_archives import upload_tree

    write_official(put, tmp_path)
    upload_tree(tmp_path, f"{s3_bucket}/sun")
    check(f"{s3_bucket}/sun")


def test_metadata_of_version_7_3_and_of_the_second_release(put: Put, tmp_path: Path):
    write_official(put, tmp_path)
    (tmp_path / "SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat").unlink()
    images = [f"{PREFIX}{scene}/image/{name}" for scene, name in SCENES.items()]
    write_meta_73(tmp_path / "SUNRGBDMeta2DBB_v2.mat", images)
    check(str(tmp_path))


def test_missing_images_and_labels_are_named(put: Put, tmp_path: Path):
    write_official(put, tmp_path)
    scene, name = list(SCENES.items())[1]
    (tmp_path / "SUNRGBD" / scene / "image" / name).unlink()
    put(f"SUNRGBD/{scene}/image/other.jpg")
    listing = open_reader("sunrgbd", str(tmp_path)).listing("train")
    assert len(listing.sources) == 1
    (left_out,) = listing.left_out
    assert left_out == LeftOut(
        "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat: label 2", f"no image {scene}/image/{name}"
    )


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((2, 3), 0.5), "whole numbers"),
        (np.full((2, 3), 300, np.uint16), "whole numbers"),
        (np.full((2, 3), -1, np.int16), "whole numbers"),
        (np.zeros((2, 3, 3), np.uint8), "matrix"),
        (np.zeros((0, 0), np.uint8), "0 x 0"),
    ],
)
def test_a_bad_label_is_named(put: Put, tmp_path: Path, label: np.ndarray, message: str):
    write_official(put, tmp_path)
    path = tmp_path / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
    path.unlink()
    if label.size:
        write_labels(path, [LABELS[0], label, *LABELS[2:]])
    else:
        with h5py.File(path, "w") as file:
            empty = file.create_dataset("#refs#/0", data=label).ref
            column = np.array([empty] * 4, h5py.ref_dtype).reshape(-1, 1)
            file.create_dataset("SUNRGBD2Dseg/seglabel", data=column, dtype=h5py.ref_dtype)
    reader = open_reader("sunrgbd", str(tmp_path))
    source = next(s for s in reader.listing("train").sources if "NYU0001" in s.image)
    with pytest.raises(BadSample, match=rf"SUNRGBD2Dseg\.mat: label 2.*{message}"):
        reader.native_label(source)


def test_a_label_that_claims_to_be_huge_or_lies_elsewhere(put: Put, tmp_path: Path):
    write_official(put, tmp_path)
    path = tmp_path / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
    path.unlink()
    (tmp_path / "secret").write_bytes(bytes(6))
    with h5py.File(path, "w") as file:
        huge = file.create_dataset("#refs#/0", (60000, 60000), np.uint8, chunks=(100, 100)).ref
        outside = file.create_dataset(
            "#refs#/1", (3, 2), np.uint8, external=[(str(tmp_path / "secret"), 0, 6)]
        ).ref
        column = np.array([huge, outside, huge, huge], h5py.ref_dtype).reshape(-1, 1)
        file.create_dataset("SUNRGBD2Dseg/seglabel", data=column, dtype=h5py.ref_dtype)
    reader = open_reader("sunrgbd", str(tmp_path))
    (first, _) = reader.listing("val").sources
    with pytest.raises(BadSample, match="60000 x 60000"):
        reader.native_label(first)
    source = next(s for s in reader.listing("train").sources if "NYU0001" in s.image)
    with pytest.raises(BadSample, match="another file"):
        reader.native_label(source)


@pytest.mark.parametrize(
    "path",
    [
        "Metadata/SUNRGBD2Dseg.mat",
        "Metadata/SUNRGBDMeta.mat",
        "traintestSUNRGBD/allsplit.mat",
    ],
)
@pytest.mark.parametrize("damage", ["text", "cut short", "empty"])
def test_a_damaged_mat_file_is_one_clear_error(put: Put, tmp_path: Path, path: str, damage: str):
    write_official(put, tmp_path)
    file = tmp_path / "SUNRGBDtoolbox" / path
    data = file.read_bytes()
    file.write_bytes({"text": b"<html>", "cut short": data[: len(data) // 3], "empty": b""}[damage])
    reader = open_reader("sunrgbd", str(tmp_path))

    def use() -> None:
        for source in reader.listing("train").sources:
            reader.native_label(source)

    with pytest.raises(UserError, match=rf"{file.name}.*download it again"):
        use()


@pytest.mark.parametrize("name", ["Metadata/SUNRGBDMeta.mat", "traintestSUNRGBD/allsplit.mat"])
def test_a_missing_mat_file_is_one_clear_error(put: Put, tmp_path: Path, name: str):
    write_official(put, tmp_path)
    (tmp_path / "SUNRGBDtoolbox" / name).unlink()
    reader = open_reader("sunrgbd", str(tmp_path))
    with pytest.raises(UserError, match=rf"{name}: must be there.*unpack SUNRGBDtoolbox\.zip"):
        reader.listing("train")


def write_ankurhanda(put: Put, first_train: int) -> None:
    for number in (1, 2, 5050):
        put(f"SUNRGBD-test_images/img-{number:06d}.jpg")
        put(f"sunrgbd_train_test_labels/img-{number:06d}.png", png([[number % 30]]))
    for number in (1, 2, 5285):
        put(f"SUNRGBD-train_images/img-{first_train + number - 1:06d}.jpg")
        put(f"sunrgbd_train_test_labels/img-{5050 + number:06d}.png", png([[30 + number % 7]]))


@pytest.mark.parametrize("first_train", [1, 5051])
@pytest.mark.parametrize("packed", [False, True])
def test_ankurhanda(put: Put, tmp_path: Path, first_train: int, packed: bool):
    write_ankurhanda(put, first_train)
    root = tmp_path
    if packed:
        root = tmp_path / "packed"
        for folder, archive in (
            ("SUNRGBD-test_images", "SUNRGBD-test_images.tgz"),
            ("SUNRGBD-train_images", "SUNRGBD-train_images.tgz"),
            ("sunrgbd_train_test_labels", "sunrgbd_train_test_labels.tar.gz"),
        ):
            files = {name.split("/")[1]: data for name, data in below(tmp_path, folder).items()}
            write_archive(root / archive, files)
    reader = open_reader("sunrgbd", str(root))
    train, val = reader.listing("train"), reader.listing("val")
    assert train.left_out == val.left_out == ()
    assert [int(reader.native_label(s)[0, 0]) for s in train.sources] == [31, 32, 30]
    assert [int(reader.native_label(s)[0, 0]) for s in val.sources] == [1, 2, 10]
    assert val.sources[0].key == "val__img-000001"
    assert train.sources[0].key == f"train__img-{first_train:06d}"
