"""Checkpoints on a real file system that is full: a small tmpfs, which only root may mount."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray.train
import yaml

from model.lseg import LSeg
from pipeline.checkpoints.files import step_folder
from pipeline.errors import UserError
from pipeline.training.config import plain
from pipeline.training.driver.launch import absolute
from pipeline.training.saving.checkpoint import content_of
from pipeline.training.saving.saver import Saver
from tests.support.local_saver import local_saver
from tests.support.mini_shards import MiniShards

REPOSITORY = Path(__file__).resolve().parents[4]
MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no room; the file that takes it."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    assert shutil.disk_usage(disk).free == 0
    return ballast


def written(mine: Saver, required: bool) -> Path | None:
    return mine._write_local(content_of(mine._state), {"step": 0}, required)


def local(mine: Saver) -> ray.train.Checkpoint:
    folder = written(mine, required=True)
    assert folder
    return ray.train.Checkpoint.from_directory(folder)


def test_a_checkpoint_is_stored_once_there_is_room(small_disk, monkeypatch, caplog):
    mine = local_saver(small_disk, monkeypatch, 60)
    source, ballast = local(mine), fill(small_disk)
    thread = threading.Thread(target=mine._upload, args=(source, "step_00000000"))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()  # And who trains is another thread.
    ballast.unlink()
    thread.join(30)
    assert not thread.is_alive()
    assert any("not stored, again in" in line for line in caplog.messages)
    assert caplog.messages[-1] == "step_00000000: stored after all"
    stored = small_disk / "mine/step_00000000"
    for path in Path(source.path).iterdir():
        assert (stored / path.name).read_bytes() == path.read_bytes()
    assert LSeg.load(stored).labels == ("road",)
    shutil.rmtree(source.path)


def test_a_disk_that_stays_full_is_told(small_disk, monkeypatch):
    mine = local_saver(small_disk, monkeypatch, 0.5)
    source = local(mine)
    fill(small_disk)
    with pytest.raises(UserError) as error:
        mine._upload(source, "step_00000000")
    for words in (f"run.storage={small_disk}:", "step_00000000", "No space left", "make room"):
        assert words in str(error.value)
    shutil.rmtree(source.path)


def test_no_room_for_the_local_folder_is_told_at_the_end_alone(small_disk, monkeypatch, caplog):
    mine = local_saver(small_disk, monkeypatch, 0.5)
    fill(small_disk)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    assert written(mine, required=False) is None
    assert "training goes on" in caplog.messages[-1]
    with pytest.raises(UserError, match=rf"{small_disk}: the checkpoint after step 0 .*TMPDIR"):
        written(mine, required=True)
    assert list(small_disk.glob("lseg-*")) == []


# Slow: a whole run of the command on a Ray of its own.
@pytest.mark.long
def test_a_run_that_ends_without_room_ends_in_one_message(
    mini_shards: MiniShards, small_disk, tmp_path
):
    config = absolute(mini_shards.config(small_disk, "mine", steps=8, checkpoint_every=4))
    config = replace(config, train=replace(config.train, storage_patience_s=3.0))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain(config)))
    command = [sys.executable, str(REPOSITORY / "jobs/train_mix.py"), "--config", str(recipe)]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env["PYTHONPATH"] = str(REPOSITORY)
    (small_disk / "mine").mkdir()
    ballast = fill(small_disk)
    with ballast.open("r+b") as file:  # Room for Ray's small files and no checkpoint.
        file.truncate(ballast.stat().st_size - MIB // 8)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: run.storage={small_disk}: checkpoint step_0000000")
    assert "make room" in line
    # Ray shows the worker's own; the command ends without one.
    assert not any(line.startswith("Traceback") for line in done.stderr.splitlines())
    ballast.unlink()
    again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (small_disk / "mine" / step_folder(8) / "trainer.pt").is_file()
