"""A snapshot of Ray Train that a full disk has torn."""

import json
import pickle

import pytest
import ray.train
import torch
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from safetensors.torch import save_file

from pipeline.checkpoints.files import TRAINER, step_folder
from pipeline.checkpoints.whole import write_digests
from pipeline.errors import UserError
from pipeline.storage import retry as patience
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
    state = {"checkpoint_results": names, "checkpoint_report_indices": [0, 1]}
    state["latest_checkpoint_result"] = {"checkpoint_dir_name": step_folder(latest)}
    (folder / SNAPSHOT).write_text(json.dumps(state))


def test_a_torn_snapshot_is_replaced_by_its_copy(run, tmp_path):
    SnapshotKeeper(run).after_report(None, [], object())
    assert (tmp_path / "mine" / SPARE).is_file()
    (tmp_path / "mine" / SNAPSHOT).write_text("")
    snapshot.repair(run)
    assert snapshot.latest_step(run) == 8


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        '{"checkpoint_results": {}}',
        '{"latest_checkpoint_result": 3}',
        '{"checkpoint_results": [{"checkpoint_dir_name": "../../other/step_00000009"}]}',
        '{"latest_checkpoint_result": {"checkpoint_dir_name": ["step_00000009"]}}',
    ],
    ids=range(6),
)
def test_what_is_no_snapshot_is_replaced_too_and_leads_nowhere(run, tmp_path, content):
    SnapshotKeeper(run).after_report(None, [], object())
    (tmp_path / "mine" / SNAPSHOT).write_text(content)
    assert snapshot.repair(run) == 8
    assert snapshot.latest_step(run) == 8
    (tmp_path / "mine" / SNAPSHOT).write_text(content)
    (tmp_path / "mine" / SPARE).write_text("{")
    assert snapshot.repair(run) == 0
    assert not (tmp_path / "mine" / SNAPSHOT).exists()


def test_ray_tries_again_to_write_a_snapshot_that_the_storage_did_not_take(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    plain = CheckpointManager._write_state_to_storage
    monkeypatch.setattr(CheckpointManager, "_write_state_to_storage", plain)  # To be put back.
    # As it arrives in the controller.
    pickle.loads(pickle.dumps(SnapshotKeeper(RunConfig(name="mine", storage="runs"), 5.0)))
    manager = object.__new__(CheckpointManager)
    answers = iter([OSError("no answer"), OSError("no answer"), "{}"])

    def state(_: object) -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(CheckpointManager, "_save_state", state)
    manager._storage_context = StorageContext(str(tmp_path), "mine")
    manager._write_state_to_storage()
    assert (tmp_path / "mine" / SNAPSHOT).read_text() == "{}"
    words = [line.split(": ", 1)[1].split(",")[0] for line in caplog.messages]
    assert words == [f"{SNAPSHOT} is not stored"] * 2 + ["stored after all"]


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


def whole(folder) -> None:
    save_file({"w": torch.ones(9)}, folder / "model.safetensors")
    torch.save({"step": 1}, folder / TRAINER)
    for name in ("config.yaml", "labels.txt", "order.txt"):
        (folder / name).write_text("a: 1\n")
    write_digests(folder)


@pytest.mark.parametrize("name", ["model.safetensors", TRAINER, "labels.txt", "config.yaml"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_run_falls_back_to_its_newest_whole_checkpoint(run, tmp_path, caplog, name, cut):
    for step in (4, 8):
        whole(tmp_path / "mine" / step_folder(step))
    assert snapshot.newest_whole(run) == 8
    damaged = tmp_path / "mine" / step_folder(8) / name
    damaged.write_bytes(damaged.read_bytes()[:3]) if cut else damaged.unlink()
    assert snapshot.repair(run) == 8
    assert snapshot.newest_whole(run) == 4
    assert f"step_00000008: {name}" in caplog.text
    assert "goes on from step_00000004" in caplog.text
    assert snapshot.latest_step(run) == 4
    state = json.loads((tmp_path / "mine" / SNAPSHOT).read_text())
    assert [r["checkpoint_dir_name"] for r in state["checkpoint_results"]] == [step_folder(4)]
    assert state["checkpoint_report_indices"] == [0]
    (tmp_path / "mine" / step_folder(4) / name).unlink()
    with pytest.raises(UserError, match=rf"none of its checkpoints.*{name} is missing"):
        snapshot.newest_whole(run)


def test_a_new_run_has_nothing_to_fall_back_from(tmp_path):
    assert snapshot.newest_whole(RunConfig(name="mine", storage=str(tmp_path))) == 0


@pytest.mark.parametrize("torn", [True, False])
def test_a_checkpoint_that_was_stored_before_any_list_is_taken_up(run, tmp_path, torn, caplog):
    folder = tmp_path / "mine"
    (folder / SNAPSHOT).write_text("{") if torn else (folder / SNAPSHOT).unlink()
    whole(folder / step_folder(4))
    (folder / step_folder(4) / "metrics.json").write_text('{"step": 4, "train/loss": 1.5}')
    # A process that died while it copied the next one.
    assert snapshot.repair(run) == snapshot.newest_whole(run) == 4
    assert "taking up step_00000004" in caplog.text
    manager = CheckpointManager(ray.train.CheckpointConfig(), StorageContext(str(tmp_path), "mine"))
    assert [each.metrics for each in manager._checkpoint_results] == [
        {"step": 4, "train/loss": 1.5}
    ]
    assert manager.latest_checkpoint_result


@pytest.mark.parametrize("missing", ["files.json", TRAINER, "labels.txt"])
def test_what_is_not_whole_by_its_own_record_is_not_taken_up(run, tmp_path, missing):
    folder = tmp_path / "mine"
    (folder / SNAPSHOT).unlink()
    whole(folder / step_folder(4))
    (folder / step_folder(4) / missing).unlink()
    assert snapshot.repair(run) == snapshot.newest_whole(run) == 0
    assert not (folder / SNAPSHOT).exists()
