"""Folders that settings name."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage.places import (
    ensure_writable_dir,
    local_state_dir,
    resolve_location,
    try_writable_place,
)
from pipeline.training.config import RunConfig, TrainMixConfig
from pipeline.training.driver.launch import absolute


def test_a_storage_that_cannot_be_made_is_a_users_mistake(tmp_path):
    file = tmp_path / "file"
    file.touch()
    config = TrainMixConfig(run=RunConfig(name="mine", storage=str(file / "runs")))
    with pytest.raises(UserError, match=r"run\.storage=.*file/runs: .*must be a folder"):
        absolute(config)


def test_a_folder_of_somebody_else_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    with pytest.raises(UserError, match=r"out=there: .* \(not writable\): give another"):
        ensure_writable_dir("out", "there", tmp_path)


def test_beside_a_storage_in_s3_it_is_the_home_that_is_to_blame(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_state_dir("storage", "s3://b/r", "s3://b/r") == tmp_path / ".lseg"
    folder = local_state_dir("storage", "a/r", str(tmp_path / "a" / "r"))
    assert folder == tmp_path / "a" / "r"
    (folder / "kept").touch()  # It is there, and a second call leaves what it holds.
    assert local_state_dir("storage", "a/r", str(folder)) == folder
    assert (folder / "kept").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^HOME=.*file: .*\.lseg must be a folder"):
        local_state_dir("storage", "s3://b/r", "s3://b/r")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3:/bucket/runs", "two slashes: write s3://bucket/runs"),
        ("~nosuchuser/runs", r"out=~nosuchuser/runs: .*write the path without ~"),
    ],
)
def test_what_is_no_place_is_told(place, message):
    with pytest.raises(UserError, match=message):
        resolve_location("out", place)


def test_only_local_paths_change(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_location("out", "s3://bucket/runs") == "s3://bucket/runs"
    assert resolve_location("out", "runs") == str(tmp_path / "runs")
    assert resolve_location("out", "~/runs") == str(Path.home() / "runs")


def test_no_path_may_be_relative_to_what_ray_uploaded(monkeypatch, tmp_path):
    folder = tmp_path / "working_dir_files" / "x"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="out=runs: is relative to the folder that Ray made"):
        resolve_location("out", "runs")


def test_a_trial_leaves_nothing_and_keeps_what_is_there(tmp_path):
    (tmp_path / "kept").mkdir()
    try_writable_place("out", str(tmp_path / "new/deep"))
    try_writable_place("out", str(tmp_path / "kept"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(UserError, match="out=/proc/nope"):
        try_writable_place("out", "/proc/nope")


def test_a_link_that_leads_to_itself_is_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    place = str(tmp_path / "loop")
    assert resolve_location("out", place) == place
    with pytest.raises(UserError, match=f"out={place}: .* must be a folder"):
        try_writable_place("out", place)
