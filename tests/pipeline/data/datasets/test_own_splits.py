"""Splits by the names of folders, as people call them."""

from pathlib import Path

import pytest

from pipeline.data.datasets.own import OwnDataset, OwnReader, open_own
from pipeline.data.datasets.own_splits import splits_in
from pipeline.errors import UserError
from tests.support.tiny_roots import write


def made(root: Path, *names: str) -> OwnReader:
    """The reader of empty files: listings read no image."""
    write(root / "classes.csv", b"id,name\n0,background\n1,bottle\n")
    for name in names:
        write(root / name, b"")
    return open_own("shop", OwnDataset(root=str(root)))


def of(folders: str) -> dict[str, list[str]]:
    return splits_in(folders.split())


def test_names_of_splits():
    assert of("train valid test") == {"train": ["train"], "val": ["valid"], "test": ["test"]}
    assert of("train2017 val2017") == {"train": ["train2017"], "val": ["val2017"]}
    assert of("train_images val_images") == {"train": ["train_images"], "val": ["val_images"]}
    assert of("img-Train img-DEV") == {"train": ["img-Train"], "val": ["img-DEV"]}
    assert of("trn eval tst") == {"train": ["trn"], "val": ["eval"], "test": ["tst"]}
    assert of("train dev @eaDir .git") == {"train": ["train"], "val": ["dev"]}


def test_names_that_say_something_else():
    # Scenes and classes may be called so; only where every folder is a split is each of them one.
    assert of("train_station val_thorens airport") == {}
    assert of("train_station bus_station") == {}
    assert of("training2 training3") == {}
    assert of("valley evaluate trainer") == {}
    assert of("train bus") == {"train": ["train"]}
    assert of("train train_extra val") == {"train": ["train"], "val": ["val"]}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ({"train": "train2017", "val": "val2017"}, {"train": "train2017", "val": "val2017"}),
        ({"train": "train", "val": "dev"}, {"train": "train", "val": "dev"}),
        ({"train": "trn", "val": "eval"}, {"train": "train", "val": "val"}),
        ({"train": "training", "val": "valid"}, {"train": "masks_train", "val": "masks_val"}),
    ],
)
def test_no_validation_image_is_trained(tmp_path: Path, images: dict, masks: dict):
    names = {"train": [f"a{n}" for n in range(12)], "val": ["v1", "v2"]}
    reader = made(
        tmp_path,
        *(f"images/{images[s]}/{n}.jpg" for s in names for n in names[s]),
        *(f"masks/{masks[s]}/{n}.png" for s in names for n in names[s]),
    )
    for split in ("train", "val"):
        listing = reader.listing(split)
        found = [source.image.rsplit("/", 1)[-1] for source in listing.sources]
        assert found == sorted(f"{name}.jpg" for name in names[split])
        assert listing.left_out == ()


def test_folders_of_splits_that_lie_deeper_are_noted(tmp_path: Path):
    places = [f"{city}/{split}/{n}" for city in "ab" for split in ("train", "val") for n in "123"]
    reader = made(
        tmp_path, *(f"images/{p}.jpg" for p in places), *(f"masks/{p}.png" for p in places)
    )
    (note,) = reader.listing("train").notes
    assert "images/a/train and images/a/val are called as splits and lie too deep" in note


def test_a_dataset_in_a_folder_of_each_split_is_told_how_to_be_one(tmp_path: Path):
    places = [f"{split}/{kind}/a" for split in ("train", "valid") for kind in ("images", "masks")]
    with pytest.raises(UserError, match="move train/images to images/train and train/masks to m"):
        made(tmp_path, *places)


def test_images_and_masks_are_divided_alike(tmp_path: Path):
    reader = made(tmp_path / "a", "images/train/a.jpg", "images/val/b.jpg", "masks/a.png")
    assert not reader.listing("train").sources
    assert "masks none of such names: divide the masks" in reader.empty_hint("train")
    reader = made(tmp_path / "b", "images/a.jpg", "masks/train/a.png", "masks/val/b.png")
    assert not reader.listing("train").sources
    assert "images none of such names: divide the images" in reader.empty_hint("train")


def test_masks_of_other_names_are_not_blamed_on_the_share(tmp_path: Path):
    reader = made(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.jpg.png", "masks/b.jpg.png")
    reader.listing("val")
    hint = reader.empty_hint("val")
    assert "masks/NAME.png belongs to images/NAME.jpg" in hint
    assert "val_fraction" not in hint
