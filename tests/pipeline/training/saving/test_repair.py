"""A snapshot of Ray Train that a full disk has torn."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.training.config import RunConfig
from pipeline.training.saving import checkpoint
from pipeline.training.saving.checkpoint import SnapshotKeeper

SNAPSHOT, SPARE = (
    "checkpoint_manager_snapshot.json",
    "checkpoint_manager_snapshot.spare.json",
)


@pytest.fixture
def run(tmp_path) -> RunConfig:
    folder = tmp_path / "mine"
    for step in (4, 8):
        (folder / checkpoint.name_of(step)).mkdir(parents=True)
        (folder / checkpoint.name_of(step) / checkpoint.TRAINER).write_bytes(b"x")
    write(folder, 8)
    return RunConfig(name="mine", storage=str(tmp_path))


def write(folder, latest: int) -> None:
    names = [{"checkpoint_dir_name": checkpoint.name_of(step)} for step in (4, 8)]
    state = {"checkpoint_results": names}
    state["latest_checkpoint_result"] = {"checkpoint_dir_name": checkpoint.name_of(latest)}
    (folder / SNAPSHOT).write_text(json.dumps(state))


def test_a_torn_snapshot_is_replaced_by_its_copy(run, tmp_path):
    SnapshotKeeper(run).after_report(None, [], object())
    assert (tmp_path / "mine" / SPARE).is_file()
    (tmp_path / "mine" / SNAPSHOT).write_text("")
    checkpoint.repair(run)
    assert checkpoint.latest_step(run) == 8


def test_a_whole_snapshot_stays(run, tmp_path):
    before = (tmp_path / "mine" / SNAPSHOT).read_bytes()
    checkpoint.repair(run)
    assert (tmp_path / "mine" / SNAPSHOT).read_bytes() == before


def test_a_torn_first_snapshot_means_the_start(run, tmp_path):
    (tmp_path / "mine" / SNAPSHOT).write_text("{")
    checkpoint.repair(run)
    assert checkpoint.latest_step(run) == 0


def test_a_checkpoint_that_was_taken_away_is_named(run, tmp_path):
    (tmp_path / "mine" / checkpoint.name_of(4) / checkpoint.TRAINER).unlink()
    with pytest.raises(UserError, match=r"run\.name=mine: its checkpoint mine/step_00000004"):
        checkpoint.repair(run)


def test_a_report_without_a_checkpoint_copies_nothing(run, tmp_path):
    SnapshotKeeper(run).after_report(None, [], None)
    assert not (tmp_path / "mine" / SPARE).exists()
