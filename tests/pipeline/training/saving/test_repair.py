"""A snapshot of Ray Train that a full disk has torn."""

import json

import pytest

from pipeline.checkpoints.files import TRAINER, step_folder
from pipeline.errors import UserError
from pipeline.training.config import RunConfig
from pipeline.training.saving import snapshot
from pipeline.training.saving.snapshot import SnapshotKeeper

SNAPSHOT, SPARE = (
    "checkpoint_manager_snapshot.json",
    "checkpoint_manager_snapshot.spare.json",
)


@pytest.fixture
def run(tmp_path) -> RunConfig:
    folder = tmp_path / "mine"
    for step in (4, 8):
        (folder / step_folder(step)).mkdir(parents=True)
        (folder / step_folder(step) / TRAINER).write_bytes(b"x")
    write(folder, 8)
    return RunConfig(name="mine", storage=str(tmp_path))


def write(folder, latest: int) -> None:
    names = [{"checkpoint_dir_name": step_folder(step)} for step in (4, 8)]
    state = {"checkpoint_results": names}
    state["latest_checkpoint_result"] = {"checkpoint_dir_name": step_folder(latest)}
    (folder / SNAPSHOT).write_text(json.dumps(state))


def test_a_torn_snapshot_is_replaced_by_its_copy(run, tmp_path):
    SnapshotKeeper(run).after_report(None, [], object())
    assert (tmp_path / "mine" / SPARE).is_file()
    (tmp_path / "mine" / SNAPSHOT).write_text("")
    snapshot.repair(run)
    assert snapshot.latest_step(run) == 8


def test_a_whole_snapshot_stays(run, tmp_path):
    before = (tmp_path / "mine" / SNAPSHOT).read_bytes()
    snapshot.repair(run)
    assert (tmp_path / "mine" / SNAPSHOT).read_bytes() == before


def test_a_torn_first_snapshot_means_the_start(run, tmp_path):
    (tmp_path / "mine" / SNAPSHOT).write_text("{")
    snapshot.repair(run)
    assert snapshot.latest_step(run) == 0


def test_a_checkpoint_that_was_taken_away_is_named(run, tmp_path):
    (tmp_path / "mine" / step_folder(4) / TRAINER).unlink()
    with pytest.raises(UserError, match=r"run\.name=mine: its checkpoint mine/step_00000004"):
        snapshot.repair(run)


def test_a_report_without_a_checkpoint_copies_nothing(run, tmp_path):
    SnapshotKeeper(run).after_report(None, [], None)
    assert not (tmp_path / "mine" / SPARE).exists()
