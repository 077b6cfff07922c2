"""The demo on photographs: what it reads, and what it says where it cannot."""

import shlex

import pytest

from jobs.cli import build_parser
from jobs.demo_photos import PhotosConfig, _training, datasets_in, next_steps
from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig
from tests.support.tiny_roots import write


def test_without_photographs_one_line_says_how_to_get_some(tmp_path):
    with pytest.raises(UserError, match=r"docs/photos\.md says how .* PHOTOS=DIR") as caught:
        datasets_in("")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder"):
        datasets_in(str(tmp_path / "none"))
    (tmp_path / "camvid").mkdir()
    with pytest.raises(UserError, match="it holds camvid: name the folder above them"):
        datasets_in(str(tmp_path))


def test_each_folder_with_a_table_is_a_dataset(tmp_path):
    for name in ("camvid", "ccp"):
        write(tmp_path / name / "classes.csv", b"id,name\n0,sky\n")
    (tmp_path / "notes").mkdir()
    assert datasets_in(str(tmp_path)) == {n: tmp_path / n for n in ("camvid", "ccp")}
    write(tmp_path / "ADE20K" / "classes.csv", b"id,name\n0,sky\n")
    with pytest.raises(UserError, match=r"own\.ADE20K"):
        datasets_in(str(tmp_path))


def test_wrong_numbers_are_refused():
    for name, value in (("seed", -1), ("steps", -1), ("asked_photos", 0)):
        with pytest.raises(UserError, match=f"{name}={value}: must be at least"):
            PhotosConfig(**{name: value})


def test_the_command_at_the_end_is_for_a_photo_that_is_there(tmp_path):
    write(tmp_path / "images/val/Thumbs.db", b"")
    write(tmp_path / "images/val/a b.jpg", b"")
    text = next_steps({"camvid": tmp_path}, tmp_path / "checkpoint", tmp_path / "own out")
    (command,) = [line for line in text.replace("\\\n", " ").splitlines() if "python" in line]
    words = shlex.split(command)
    assert words[:3] == ["python", "jobs/predict.py", str(tmp_path / "images/val/a b.jpg")]
    read = build_parser(PredictConfig).parse_args(words[3:])
    assert read.checkpoint == str(tmp_path / "checkpoint")
    assert read.out == str(tmp_path / "own out/predicted")


def test_fewer_steps_than_the_recipe_warms_up_for_are_a_smoke_test(tmp_path):
    recipe = _training(PhotosConfig(out=str(tmp_path)), tmp_path).train
    assert 0 < recipe.warmup_steps < recipe.steps
    for steps, warmup in ((1, 0), (8, 2), (10_000, recipe.warmup_steps)):
        train = _training(PhotosConfig(steps=steps), tmp_path).train
        assert (train.steps, train.warmup_steps) == (steps, warmup)
