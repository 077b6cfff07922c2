"""Roots that are a folder too high, too low, or in themselves: the message names the place."""

from pathlib import Path

import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.misplaced import doubled, elsewhere
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.tiny_roots import write, write_ade20k, write_cityscapes


def deeper(folder: Path) -> None:
    """Moves what a folder holds into one of its own name in it, as an archive unpacks."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.mkdir()
    aside.rename(folder / folder.name)


@pytest.mark.parametrize(
    "below", ["", "gtFine/train", "leftImg8bit/train/aachen", "gtFine/val/ulm"]
)
def test_the_root_that_was_meant_is_named(tmp_path, below):
    write_cityscapes(tmp_path / "a/b/city")
    given = tmp_path / "a/b/city" / below if below else tmp_path
    with pytest.raises(UserError, match=rf"must hold leftImg8bit.*: give {tmp_path}/a/b/city$"):
        open_reader("cityscapes", str(given))


def test_a_dataset_that_is_nowhere_near_has_no_remedy(tmp_path):
    write(tmp_path / "a/b/c/d/e.txt", b"")
    with pytest.raises(UserError, match=r"it holds a$"):
        open_reader("cityscapes", str(tmp_path))


@pytest.mark.parametrize("part", ["gtFine", "leftImg8bit"])
def test_a_doubled_folder_is_the_cause_that_is_named(tmp_path, part):
    write_cityscapes(tmp_path)
    deeper(tmp_path / part)
    config = PrepareConfig(roots=RootsConfig(cityscapes=str(tmp_path)), out=str(tmp_path / "out"))
    with pytest.raises(
        UserError, match=rf"{part}/{part} is a folder too deep: move .* into {part}"
    ):
        prepare(config)
    deeper(tmp_path / part)  # Twice: the folder between holds nothing else.
    with pytest.raises(UserError, match=rf"{part}/{part} is a folder too deep"):
        prepare(config)


@pytest.mark.parametrize("part", ["annotations", "images"])
def test_so_it_is_for_other_datasets(tmp_path, part):
    write_ade20k(tmp_path)
    deeper(tmp_path / part)
    config = PrepareConfig(roots=RootsConfig(ade20k=str(tmp_path)), out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=rf"{part}/{part} is a folder too deep: move"):
        prepare(config)


def test_a_split_whose_names_do_not_fit_is_not_skipped(tmp_path):
    write_cityscapes(tmp_path)
    deeper(tmp_path / "gtFine/train")  # The other split is whole, and would be converted alone.
    config = PrepareConfig(roots=RootsConfig(cityscapes=str(tmp_path)), out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"'train' \(.*gtFine/train/train is a folder too deep"):
        prepare(config)


def test_own_datasets_too(tmp_path):
    for name in ("images/a.jpg", "masks/a.png"):
        write(tmp_path / "up/shop" / name, b"")
    write(tmp_path / "up/shop/classes.csv", b"id,name\n0,a\n")
    for given in ("up", "up/shop/images"):
        with pytest.raises(UserError, match=rf"set root to {tmp_path}/up/shop$"):
            open_own("shop", OwnDataset(root=str(tmp_path / given)))
    with pytest.raises(UserError, match=r"it holds images, masks: correct the root or the name$"):
        open_own("shop", OwnDataset(root=str(tmp_path / "up/shop"), masks="labels"))
    deeper(tmp_path / "up/shop/masks")
    reader = open_own("shop", OwnDataset(root=str(tmp_path / "up/shop")))
    assert reader.empty_hint("train").startswith("masks/masks is a folder too deep")


def test_folders_above_that_are_nobodys_business_end_the_search(tmp_path):
    def refused(root, base):
        raise UserError("access denied")

    assert elsewhere(refused, str(tmp_path)) == ""
    (tmp_path / "lost+found").mkdir()
    looked_at = []
    assert elsewhere(lambda root, base: looked_at.append((root.uri, base)), str(tmp_path)) == ""
    assert [base for uri, base in looked_at if uri == str(tmp_path)] == []
    assert doubled(open_storage(str(tmp_path)), "", ["none"]) == ""
