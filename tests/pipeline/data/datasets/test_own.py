"""Datasets of the user's own as people have them: every file is used, or named with its reason."""

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from jobs import doctor
from pipeline.data.datasets.base import SPLITS, LeftOut, NoAccess
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy.labelling import of_classes
from pipeline.errors import UserError
from tests.support.tiny_roots import encode, noise, write

TABLE = b"id,name\n0,background\n1,bottle\n"


def own(root: Path, **values):
    """The reader of a dataset in a folder."""
    return open_own("shop", OwnDataset(root=str(root), **values))


def put(root: Path, *names: str) -> Path:
    """Empty files, and the table: listings read no image."""
    for name in ("classes.csv", *names):
        write(root / name, TABLE if name == "classes.csv" else b"")
    return root


def pairs(root: Path, split="train", **values) -> list[tuple[str, str]]:
    listing = own(root, **{"val_fraction": 0.0} | values).listing(split)
    return [(source.image, source.label) for source in listing.sources]


def left_out(root: Path, **values) -> dict[str, str]:
    listing = own(root, **{"val_fraction": 0.0} | values).listing("train")
    return {bad.name: bad.reason for bad in listing.left_out}


def test_suffixes_have_any_case(tmp_path):
    names = ("a.jpg", "b.JPG", "c.Jpeg", "d.PNG", "e.jfif")
    masks = ("a.PNG", "b.png", "c.Png", "d.png", "e.png")
    put(tmp_path, *(f"images/{n}" for n in names), *(f"masks/{n}" for n in masks))
    assert pairs(tmp_path) == [
        (f"images/{image}", f"masks/{mask}") for image, mask in zip(names, masks, strict=True)
    ]
    assert left_out(tmp_path) == {}


def test_one_name_twice_is_used_for_neither(tmp_path):
    put(tmp_path, "images/a.jpg", "images/a.png", "masks/a.png", "images/b.jpg", "masks/b.png")
    put(tmp_path, "images/c.jpg", "masks/c.png", "masks/c.PNG")
    assert pairs(tmp_path) == [("images/b.jpg", "masks/b.png")]
    assert left_out(tmp_path) == {
        "images/a.jpg": "has the name of images/a.png",
        "images/a.png": "has the name of images/a.jpg",
        "masks/a.png": "no image of one meaning: images/a.jpg, images/a.png have one name",
        "masks/c.png": "has the name of masks/c.PNG",
        "masks/c.PNG": "has the name of masks/c.png",
        "images/c.jpg": "no label of one meaning: masks/c.PNG, masks/c.png have one name",
    }


def test_what_cannot_be_used_is_counted_in_one_split_alone(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    put(tmp_path, *(f"images/{number}.jp2" for number in range(30)))
    reader = own(tmp_path, val_fraction=0.5)
    train, val = ({bad.name for bad in reader.listing(split).left_out} for split in SPLITS)
    assert len(train) + len(val) == len(train | val) == 30
    assert min(len(train), len(val)) > 5


def test_whatever_looks_like_an_image_is_used_or_named(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/b.jp2", "images/notes.txt", "masks/c.tif")
    put(
        tmp_path, "images/._a.jpg", "images/@eaDir/a.jpg/THUMB_M.jpg", "images/d.jpg", "masks/d.npy"
    )
    assert pairs(tmp_path) == [("images/a.jpg", "masks/a.png")]
    found = left_out(tmp_path)
    assert sorted(found) == ["images/b.jp2", "images/d.jpg", "masks/c.tif", "masks/d.npy"]
    assert "is not read: a label is called *.png here" in found["masks/c.tif"]
    assert found["images/d.jpg"] == "no label masks/d.png; masks/d.npy is there, which is not read"


def test_names_that_are_no_paths_are_left_out(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/win\\z.jpg", "masks/win\\z.png")
    bad = os.fsencode(tmp_path / "images") + b"/b\xff\n.jpg"
    Path(os.fsdecode(bad)).write_bytes(b"")
    assert pairs(tmp_path) == [("images/a.jpg", "masks/a.png")]
    found = left_out(tmp_path)
    assert "backslash" in found["images/win\\z.jpg"]
    assert "backslash" in found["masks/win\\z.png"]
    assert "UTF-8" in found["images/b\\udcff\\n.jpg"]


def test_names_that_are_spelt_otherwise_are_named(tmp_path):
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    put(tmp_path, "images/a.jpg", "masks/a.png", f"images/{nfc}.jpg", f"masks/{nfd}.png")
    put(tmp_path, "images/IMG_1.JPG", "masks/img_1.png")
    found = left_out(tmp_path)
    assert found[f"images/{nfc}.jpg"].startswith(f"no label: masks/{nfd}.png is spelt otherwise")
    assert found["masks/img_1.png"].startswith("no image: images/IMG_1.JPG is spelt otherwise")


def test_links_to_nothing_are_left_out(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/notes.txt")
    # As git-annex and DVC leave what was not fetched: neither file of the sample can be read.
    for name in ("images/b.jpg", "masks/b.png", "images/._b.jpg", "images/c.txt"):
        (tmp_path / name).symlink_to("/nowhere/b")
    os.mkfifo(tmp_path / "images/pipe.png")
    assert pairs(tmp_path) == [("images/a.jpg", "masks/a.png")]
    found = left_out(tmp_path)
    assert sorted(found) == ["images/b.jpg", "images/pipe.png", "masks/b.png"]
    assert all("link to nothing" in reason for reason in found.values())
    with pytest.raises(FileNotFoundError, match=r"pipe\.png: is no plain file"):
        own(tmp_path).root.read("images/pipe.png")


def test_files_of_no_known_format_are_noted(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/notes.txt", "images/b", "images/c.jpg.gz")
    (note,) = own(tmp_path).listing("train").notes
    assert note.startswith("2 files are not read, of which the names say no format")
    assert note.endswith("(1 .gz, 1 without a suffix): images/b, images/c.jpg.gz")
    assert own(tmp_path).listing("val").notes == ()


@pytest.mark.parametrize(
    ("train", "val"), [("training", "validation"), ("train", "valid"), ("Train", "VAL")]
)
def test_folders_that_are_splits(tmp_path, train: str, val: str):
    for split, names in ((train, "ab"), (val, "c"), ("test", "defg")):
        put(tmp_path, *(f"images/{split}/{n}.jpg" for n in names))
        put(tmp_path, *(f"masks/{split}/{n}.png" for n in names))
    put(tmp_path, "images/loose.jpg")
    assert [image for image, _ in pairs(tmp_path)] == [f"images/{train}/{n}.jpg" for n in "ab"]
    assert pairs(tmp_path, "val") == [(f"images/{val}/c.jpg", f"masks/{val}/c.png")]
    assert pairs(tmp_path, "test")[0] == ("images/test/d.jpg", "masks/test/d.png")
    assert own(tmp_path).splits == ("train", "val", "test")
    assert own(tmp_path).listing("train").notes == ()
    assert "lies in no folder of a split" in left_out(tmp_path)["images/loose.jpg"]


def test_split_folders_that_do_not_fit(tmp_path):
    put(tmp_path / "two", "images/val/a.jpg", "images/valid/b.jpg", "masks/val/a.png")
    with pytest.raises(UserError, match=r"val and valid.*keep one"):
        own(tmp_path / "two").listing("val")
    put(tmp_path / "test", "images/train/a.jpg", "masks/train/a.png", "images/test/b.jpg")
    (note,) = own(tmp_path / "test").listing("train").notes
    assert note == (
        "images/test: 1 images are not read, since masks holds no folder test: rename it to val to "
        "validate on it"
    )
    assert own(tmp_path / "test").splits == SPLITS
    assert "add one called val" in own(tmp_path / "test").empty_hint("val")
    # A folder of any other kind may be called test too.
    put(tmp_path / "kind", "images/test/a.jpg", "images/day/b.jpg", "masks/test/a.png")
    assert pairs(tmp_path / "kind") == [("images/test/a.jpg", "masks/test/a.png")]
    put(tmp_path / "few", "images/a.jpg", "masks/a.png")
    assert "own.shop.val_fraction=0 " in own(tmp_path / "few", val_fraction=0.0).empty_hint("val")


def test_masks_may_lie_among_the_images(tmp_path):
    put(tmp_path, "images/a.png", "images/a_mask.png", "images/b.jpg", "images/b_mask.png")
    found = pairs(tmp_path, masks="images", mask_suffix="_mask")
    assert found == [("images/a.png", "images/a_mask.png"), ("images/b.jpg", "images/b_mask.png")]
    assert left_out(tmp_path, masks="images", mask_suffix="_mask") == {}
    # A mask is none of the images of the split that its own name would be drawn into.
    names = [f"images/c{n}{end}" for n in range(20) for end in (".jpg", "_mask.png")]
    put(tmp_path, *names)
    for split in SPLITS:
        found = own(tmp_path, masks="images", mask_suffix="_mask", val_fraction=0.5).listing(split)
        assert found.sources
        assert found.left_out == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('id,name\n0,"two\nlines"\n', "line 3: name=two\\nlines: must be one line"),
        ("id,name\n0,form\ffeed\n", "must be one line"),
        ("id,name\n0,a\u2028b\n", "must be one line"),
        ("id,name\n0,a\u0085b\n", "must be one line"),
        ("id,name\n0,Bottle-X\n1,bottle_x\n", "same to the text encoder as 'Bottle-X'"),
        ("id,name\n0,\uff22\uff25\uff2c\uff34\n1,belt\n", "same to the text encoder"),
        ("id,name\n0,big  box\n1,Big Box\n", "same to the text encoder"),
        ("id,name\n²,a\n", "id='²': must be a whole number"),
        ("id,name\n" + "9" * 5000 + ",a\n", "must be a whole number from 0 to 254"),
        ("id,name\n255,a\n", "0 to 254, since 255 stands for unlabelled pixels: write another id"),
        ("id,name\n-1,a\n", "must be a whole number"),
        ("id,name\n1e2,a\n", "must be a whole number"),
        ("id,name\n0," + "x" * 200_000 + "\n", "field larger than field limit"),
        ("id,name\n0," + "x" * 300 + "\n", "at most 200 characters"),
        ("id,name\n" + "0,a\n" * 400_000, "too large"),
        ("number,label\n0,a\n", "it is number, label"),
        ("", "it is nothing"),
        ("id,name\n0,a\n0,b\n", "id=0: comes twice"),
        ("id,name\n0,\n", "has no name"),
        ("id,name,universal\n0,a,rode\n", "universal='rode'"),
        ("id,name,universal\n0,a,-\n", "names no class"),
        ("id,name\n0,car, red\n1,car, blue\n", "line 2: has more cells than the first line has"),
        ("id;name;universal\n0;car; ;red\n", "double quotes"),
        ("id,name,Name\n0,car,Auto\n", "names the column name twice"),
        ("id,name,univrsal\n0,car,road\n", "column 'univrsal', which is not read: call it univ"),
        ("id,name,universal_class\n0,car,road\n", "which is not read"),
    ],
    ids=range(26),
)
def test_tables_that_are_refused_in_one_line(tmp_path, table: str, words: str):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "classes.csv").write_text(table, newline="")
    with pytest.raises(UserError) as caught:
        own(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_table_of_another_encoding_is_refused(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "classes.csv").write_bytes("id,name\n0,Straße\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        own(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        "ID;Name\n007;Road\n",
        "id,name,colour,\n7,Road,red,,\n",
        "\ufeffid\tname\n7\tRoad\n",
        "name,id\nRoad,7",
    ],
)
def test_tables_in_the_forms_that_spreadsheets_write(tmp_path, table: str):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "classes.csv").write_text(table, encoding="utf-8")
    (entry,) = own(tmp_path).classes
    assert (entry.native_id, entry.name, entry.target) == (7, "Road", "road")


def test_names_of_one_target_are_twins_in_native_classes_alone(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "classes.csv").write_text("id,name\n0,Road\n1,road\n")
    classes = own(tmp_path).classes
    assert {entry.target for entry in classes} == {"road"}
    of_classes("shop", classes, "universal")
    with pytest.raises(UserError, match="'road' is the same to the text encoder as 'Road'"):
        of_classes("shop", classes, "native")


def counts(**pixels: int) -> np.ndarray:
    table = np.zeros(256, np.int64)
    for name, count in pixels.items():
        table[int(name[1:])] = count
    return table


def test_a_format_that_is_not_read_is_named_with_what_to_do(tmp_path):
    put(tmp_path, "images/a.jxl", "images/b.jpg", "masks/a.png", "masks/b.tif", "masks/b.png")
    assert left_out(tmp_path) == {
        "images/a.jxl": "is of a format that is not read: convert it to .jpg or .png",
        "masks/a.png": "no image images/a.jpg or images/a.png; images/a.jxl is there, which is not "
        "read",
        "masks/b.tif": "is not read: a label is called *.png here: convert it, or rename it",
    }


def test_masks_of_two_values_are_remarked(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    reader = own(tmp_path)
    unseen, binary = reader.remarks(counts(i0=9, i255=5))
    assert unseen == "classes without a pixel in any mask: bottle (1)"
    assert "nothing but 0 and 255" in binary
    assert "write 1" in binary
    assert reader.remarks(counts(i0=9, i1=3, i255=5)) == []
    assert len(reader.remarks(counts(i0=9))) == 1
    (tmp_path / "classes.csv").write_text("id,name\n0,background\n1,bottle\n2,cup\n")
    unseen, share = own(tmp_path).remarks(counts(i0=6, i1=3, i255=1))
    assert unseen == "classes without a pixel in any mask: cup (2)"
    assert share.startswith("10% of the pixels of the masks are 255, which is read as unlabelled")
    assert "such as cup, write its id (2)" in share


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENAMETOOLONG])
def test_a_file_that_cannot_be_opened_is_one_bad_sample(tmp_path, monkeypatch, number: int):
    put(tmp_path, "images/a.jpg", "masks/a.png")
    reader = own(tmp_path)

    def fail(_: str) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reader.root, "_read", fail)
    with pytest.raises(NoAccess, match=r"images/a\.jpg"):
        reader.read("images/a.jpg", "missing")
    # A storage that is gone as a whole ends the job instead.
    number = errno.ESTALE
    with pytest.raises((UserError, OSError)) as caught:
        reader.read("images/a.jpg", "missing")
    assert not isinstance(caught.value, BadSample)


def write_odd(root: Path) -> Path:
    """A dataset with one fault of each kind among ten pairs, whose masks have 0 and 255 alone."""
    mask = np.zeros((20, 30), np.uint8)
    mask[:9] = 255
    for number in range(10):
        write(root / f"images/p{number}.JPG", encode(noise(20, 30, number), ".jpg"))
        write(root / f"masks/p{number}.png", encode(mask, ".png"))
    write(root / "images/p0.png", encode(noise(20, 30, 99), ".png"))
    write(root / "images/win\\z.jpg", b"")
    write(root / "images/\x1b[2J\n.jp2", b"")
    write(root / "classes.csv", TABLE)
    return root


def test_the_doctor_names_all_of_it(tmp_path, monkeypatch, capsys):
    write_odd(tmp_path / "shop")
    arguments = ["--own.shop.root", str(tmp_path / "shop"), "--own.shop.val_fraction=0"]
    report = tmp_path / "report.json"
    arguments += ["--workers=1", "--splits=[train]"]
    monkeypatch.setattr("sys.argv", ["doctor.py", *arguments, "--out", str(report)])
    assert doctor.command() == 1
    captured = capsys.readouterr()
    text = report.read_text()
    for words in (
        "has the name of images/p0.JPG",
        "no image of one meaning",
        "backslash",
        "images/\\\\x1b[2J\\\\n.jp2",
        "nothing but 0 and 255",
        "bottle (1)",
    ):
        assert words in text, words
    assert "remarks above should be read" in captured.out
    assert "\x1b[2J" not in captured.out + captured.err


def test_left_out_is_plain_text(tmp_path):
    write_odd(tmp_path / "shop")
    listing = own(tmp_path / "shop").listing("train")
    assert all(bad == LeftOut(bad.name, bad.reason) for bad in listing.left_out)
    assert all((bad.name + bad.reason).isprintable() for bad in listing.left_out)


def write_mats(root: Path, save, *names: str) -> None:
    """Masks of 2 x 3 pixels as MATLAB files, with images of that size."""
    put(root)
    ids = np.array([[0, 1, 1], [0, 0, 255]], np.uint8)
    for name in names:
        write(root / f"images/{name}.jpg", encode(noise(2, 3, 0), ".jpg"))
        (root / "masks").mkdir(exist_ok=True)
        save(root / f"masks/{name}.mat", ids)


def save_old(path: Path, ids: np.ndarray, **more) -> None:
    scipy.io.savemat(path, {"groundtruth": ids, **more}, do_compression=True)


def save_new(path: Path, ids: np.ndarray) -> None:
    """Of version 7.3: HDF5, in MATLAB's order of rows and columns."""
    with h5py.File(path, "w") as file:
        file.create_dataset("groundtruth", data=ids.T)


@pytest.mark.parametrize("save", [save_old, save_new])
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float64, np.bool_])
def test_masks_in_matlab_files_are_read_by_the_name_of_their_variable(tmp_path, save, kind):
    write_mats(tmp_path, lambda path, ids: save(path, (ids % 2).astype(kind)), "a", "b")
    reader = own(tmp_path, val_fraction=0.0, mask_variable="groundtruth")
    first, _ = reader.listing("train").sources
    assert (first.image, first.label) == ("images/a.jpg", "masks/a.mat")
    assert reader.native_label(first).tolist() == [[0, 1, 1], [0, 0, 1]]
    assert reader.native_label(first).dtype == np.uint8


def test_a_matlab_file_without_such_an_array_is_a_bad_sample(tmp_path):
    write_mats(tmp_path, save_old, "a")
    other = own(tmp_path, val_fraction=0.0, mask_variable="labels")
    (source,) = other.listing("train").sources
    with pytest.raises(
        BadSample, match=r"masks/a\.mat: has no variable labels; it has groundtruth"
    ):
        other.native_label(source)
    save_new(tmp_path / "masks/a.mat", np.zeros((2, 3), np.uint8))
    with pytest.raises(BadSample, match="has no variable labels; it has groundtruth"):
        other.native_label(source)
    reader = own(tmp_path, val_fraction=0.0, mask_variable="groundtruth")
    odd = {
        "must be a matrix": np.zeros((2, 3, 2), np.uint8),
        "whole numbers of 0 to 255": np.full((2, 3), 0.5),
        "of 0 to 255": np.full((2, 3), 256),
        "must be a matrix of whole": np.array([["a"]]),
        "ids 7": np.full((2, 3), 7),
    }
    for message, values in odd.items():
        save_old(tmp_path / "masks/a.mat", values)
        with pytest.raises(BadSample, match=message):
            reader.native_label(source)
    (tmp_path / "masks/a.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(BadSample, match=r"masks/a\.mat: is no whole MATLAB file"):
        reader.native_label(source)


def test_matlab_masks_without_a_variable_say_what_to_set(tmp_path):
    write_mats(tmp_path, save_old, "a")
    assert "own.shop.mask_variable" in own(tmp_path, val_fraction=0.0).empty_hint("train")
    with pytest.raises(UserError, match="must be the name of a variable"):
        OwnDataset(root="r", mask_variable="a b")
    # Shards made of another variable are those of other sources.
    extras = [
        own(tmp_path, val_fraction=0.0, mask_variable=name).listing("train").sources[0].extra
        for name in ("groundtruth", "other")
    ]
    assert extras == [{"variable": "groundtruth"}, {"variable": "other"}]
