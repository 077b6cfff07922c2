"""What waits on a node's own disk while the storage is slow or fails."""

import json
import math
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.context import (
    DistributedContext,
    ExecutionContext,
    TrainContext,
)
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from safetensors import SafetensorError

from model.errors import ModelError
from model.lseg import LSeg
from pipeline.checkpoints.files import step_folder
from pipeline.errors import UserError
from pipeline.training.config import RunConfig
from pipeline.training.saving import checkpoint
from pipeline.training.saving.checkpoint import content_of
from pipeline.training.saving.local_folders import LocalFolders
from pipeline.training.saving.saver import Saver
from tests.support.local_saver import local_saver

METRIC = "val/miou"


class Door:
    """A real storage behind a door: uploads wait while it is shut, and fail while it is broken."""

    def __init__(self, mine: Saver, monkeypatch) -> None:
        self.open, self.broken = threading.Event(), False
        self.open.set()
        self.asked: list[str] = []
        persist = mine._storage.upload

        def guarded(local: Any, name: str) -> Any:
            self.asked.append(name)
            assert self.open.wait(30)
            if self.broken:
                raise OSError("no answer")
            return persist(local, name)

        monkeypatch.setattr(mine._storage, "upload", guarded)


@pytest.fixture(autouse=True)
def local(tmp_path, monkeypatch) -> Path:
    """The node's own disk."""
    folder = tmp_path / "local"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def saver(folder: Path, monkeypatch, keep_best: str = METRIC) -> tuple[Saver, Door]:
    (folder / "mine").mkdir(exist_ok=True)
    mine = local_saver(folder, monkeypatch, 0.0, keep_best)
    return mine, Door(mine, monkeypatch)


def offer(mine: Saver, step: int, value: float) -> None:
    mine._state.step = step
    mine.keep_best({METRIC: value})


def stored(folder: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The names of the best models in the storage, and what `best.json` says."""
    names = sorted(path.name for path in (folder / "mine").glob("best_*"))
    path = folder / "mine/best.json"
    return names, json.loads(path.read_text()) if path.exists() else None


def test_the_best_model_is_stored_and_replaces_the_one_before(tmp_path, local, monkeypatch):
    mine, _ = saver(tmp_path, monkeypatch)
    for step, value in ((1, 0.2), (2, 0.5), (3, 0.4), (4, 0.5)):
        offer(mine, step, value)
        mine.wait()
    names, entry = stored(tmp_path)
    assert names == ["best_00000002"]
    assert entry
    validation = entry.pop("validation")
    assert validation == {"datasets": "trained", "split": "val", "images": 200, "base_px": 520}
    assert entry == {"step": 2, "metric": METRIC, "value": 0.5, "folder": "best_00000002"}
    assert LSeg.load(tmp_path / "mine/best_00000002").labels == ("road",)
    assert list(local.iterdir()) == []
    again, _ = saver(tmp_path, monkeypatch)
    offer(again, 5, 0.5)
    again.wait()
    assert stored(tmp_path)[0] == ["best_00000002"]


def test_a_slow_storage_holds_up_nobody_and_only_the_best_waits(tmp_path, local, monkeypatch):
    mine, door = saver(tmp_path, monkeypatch)
    door.open.clear()
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.3)):
        offer(mine, step, value)  # Returns, though the first is still on its way.
        while not door.asked:
            time.sleep(0.01)
    assert stored(tmp_path) == ([], None)
    assert len(list(local.iterdir())) == 2
    door.open.set()
    mine.wait()
    assert door.asked == ["best_00000001", "best_00000003"]
    names, entry = stored(tmp_path)
    assert names == ["best_00000003"]
    assert entry
    assert entry["value"] == 0.4
    assert list(local.iterdir()) == []


def test_a_best_model_that_was_not_stored_does_not_count(tmp_path, local, monkeypatch, caplog):
    mine, door = saver(tmp_path, monkeypatch)
    door.broken = True
    offer(mine, 1, 0.9)
    mine.wait()
    assert "the best model, of step 1, was not kept" in caplog.messages[-1]
    door.broken = False
    offer(mine, 2, 0.4)
    mine.wait()
    names, entry = stored(tmp_path)
    assert (names, entry and entry["value"]) == (["best_00000002"], 0.4)
    assert list(local.iterdir()) == []


@pytest.mark.parametrize(
    ("metric", "value", "told"),
    [
        (METRIC, math.nan, []),
        ("val/coco/miou", 0.9, ["is of another metric (val/coco/miou, now val/miou)"]),
        (METRIC, 0.9, ["is of another validation"]),  # An entry of old does not say of which.
    ],
)
def test_what_is_no_best_value_of_this_metric_can_be_beaten(
    tmp_path, monkeypatch, caplog, metric, value, told
):
    folder = tmp_path / "mine/best_00000001"
    folder.mkdir(parents=True)
    entry = {"step": 1, "metric": metric, "value": value, "folder": folder.name}
    (tmp_path / "mine/best.json").write_text(json.dumps(entry))
    mine, _ = saver(tmp_path, monkeypatch)
    assert len(caplog.messages) == len(told)
    assert all(words in message for words, message in zip(told, caplog.messages, strict=True))
    offer(mine, 2, math.nan)  # Which is never the best.
    mine.wait()
    assert stored(tmp_path)[0] == ["best_00000001"]
    offer(mine, 3, 0.1)
    mine.wait()
    names, found = stored(tmp_path)
    assert (names, found and found["step"]) == (["best_00000003"], 3)


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1}', "../../other"])
def test_a_damaged_record_of_the_best_model_does_not_count(tmp_path, monkeypatch, caplog, text):
    (tmp_path / "mine").mkdir()
    outside = tmp_path / "other"
    outside.mkdir()
    if text.startswith(".."):
        entry = {"step": 1, "metric": METRIC, "value": 0.9, "folder": text}
        text = json.dumps(entry)
    (tmp_path / "mine/best.json").write_text(text)
    mine, _ = saver(tmp_path, monkeypatch)
    assert "cannot be read" in caplog.messages[-1]
    offer(mine, 2, 0.1)
    mine.wait()
    assert stored(tmp_path)[0] == ["best_00000002"]
    assert outside.is_dir()


class Reports:
    """The reports of a worker as Ray Train itself queues and uploads them."""

    def __init__(self, mine: Saver, monkeypatch) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        self._actor: Any = SynchronizationActor.remote()
        self._runner = ThreadRunner()
        context = TrainContext(
            train_run_context=None,  # type: ignore[arg-type]
            distributed_context=DistributedContext(0, 1, 0, 1, 0),
            execution_context=ExecutionContext(self._actor, self.queue, self._runner, []),
            storage_context=ray.train.get_context().get_storage(),
            preemption_context=None,  # type: ignore[arg-type]
            controller_actor=None,  # type: ignore[arg-type]
            dataset_shard_provider=None,  # type: ignore[arg-type]
        )
        monkeypatch.setattr(ray.train, "report", context.report)

    def take(self, count: int) -> list[str]:
        """The next reports: the folder in the storage, or nothing."""
        reports = [self.queue.get(timeout=30) for _ in range(count)]
        return [Path(r.checkpoint.path).name if r.checkpoint else "" for r in reports]

    def close(self) -> None:
        """Ends the actor."""
        ray.kill(self._actor)


@pytest.fixture
def reporting(local_ray, tmp_path, monkeypatch) -> Iterator[tuple[Saver, Door, Reports]]:
    mine, door = saver(tmp_path, monkeypatch, "")
    reports = Reports(mine, monkeypatch)
    yield mine, door, reports
    door.open.set()
    reports.close()


def save(mine: Saver, step: int, **how: bool) -> None:
    """Saves a checkpoint, which must not wait for those before it."""
    mine._state.step = step
    mine._state.order = [0] * step

    def save_and_report() -> None:
        mine.save({}, **({"required": False} | how))
        mine.report()

    thread = threading.Thread(target=save_and_report)
    thread.start()
    thread.join(15)
    assert not thread.is_alive()


def test_what_waits_for_a_slow_storage_is_bounded(reporting, local, caplog):
    mine, door, reports = reporting
    door.open.clear()
    for step in (1, 2, 3):
        save(mine, step)
    assert "step 3: no checkpoint, since 2 are still on their way" in caplog.messages[-1]
    assert len(list(local.iterdir())) == 2
    save(mine, 4, bypass_backlog=True)
    save(mine, 5, required=True)
    assert len(list(local.iterdir())) == 4
    door.open.set()
    names = [step and step_folder(step) for step in (1, 2, 0, 4, 5)]
    assert reports.take(5) == [name or "" for name in names]
    save(mine, 6)
    assert reports.take(1) == [step_folder(6)]
    assert list(local.iterdir()) == []


class Pen:
    """Holds up what writes checkpoints to the local disk."""

    def __init__(self, monkeypatch) -> None:
        self.free, self.began = threading.Event(), threading.Event()
        write = checkpoint.save

        def held(*given: Any) -> None:
            self.began.set()
            assert self.free.wait(30)
            write(*given)

        monkeypatch.setattr(checkpoint, "save", held)


def test_training_goes_on_while_a_checkpoint_is_written_and_a_later_one_waits(
    reporting, tmp_path, monkeypatch, caplog
):
    mine, _, reports = reporting
    pen, weight = Pen(monkeypatch), next(iter(mine._state.lseg.parameters()))
    before = weight.detach().clone()
    mine._state.step, mine._state.order = 1, [7]
    mine.save({}, required=False)
    assert pen.began.wait(30)
    assert mine.news == 0
    with torch.no_grad():  # The step after it.
        weight += 1.0
    mine._state.step, mine._state.order = 2, [7, 8]
    later = threading.Thread(target=mine.save, args=({},), kwargs={"required": False})
    later.start()
    later.join(0.3)
    assert later.is_alive()
    assert caplog.messages[-1] == "step 2: the checkpoint waits until that of step 1 is written"
    pen.free.set()
    later.join(30)
    mine.wait()
    assert reports.take(2) == [step_folder(1), step_folder(2)]
    for step, wanted in ((1, before), (2, before + 1.0)):
        folder = tmp_path / "mine" / step_folder(step)
        assert torch.equal(next(iter(LSeg.load(folder).parameters())), wanted)
        assert len((folder / "order.txt").read_text().split()) == step
    assert mine.news == 0


def test_what_is_written_is_news_until_it_is_reported(reporting, monkeypatch):
    mine, _, reports = reporting
    save(mine, 1)
    assert mine.news == 0
    mine._state.step = 2
    mine.save({}, required=False)
    mine._settle()
    assert mine.news == 1
    mine.report()
    assert mine.news == 0
    assert reports.take(2) == [step_folder(1), step_folder(2)]
    monkeypatch.setattr(checkpoint, "save", lambda *_: 1 / 0)
    mine._state.step = 3
    mine.save({}, required=False)
    mine._settle()
    mine.report()
    assert mine.news == 1  # A defect, until the run has ended by it.
    assert isinstance(mine.defect, ZeroDivisionError)


def test_the_best_model_and_the_checkpoint_of_a_step_share_one_copy(
    local_ray, tmp_path, local, monkeypatch
):
    mine, _ = saver(tmp_path, monkeypatch)
    reports, pen = Reports(mine, monkeypatch), Pen(monkeypatch)
    mine._state.step, mine._state.order = 1, [7]
    mine.keep_best({METRIC: 0.5})
    assert pen.began.wait(30)
    mine.save({}, required=False)  # Does not wait for the writer.
    pen.free.set()
    mine.wait()
    assert reports.take(1) == [step_folder(1)]
    one, other = (tmp_path / "mine" / name for name in ("best_00000001", step_folder(1)))
    name = "model.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()
    assert not (one / "trainer.pt").exists()
    reports.close()


def test_a_report_without_a_checkpoint_does_not_wait_for_those_before(
    reporting, tmp_path, monkeypatch, caplog
):
    mine, door, reports = reporting
    door.open.clear()
    save(mine, 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    save(mine, 2)
    assert "training goes on" in caplog.messages[-1]
    door.open.set()
    assert reports.take(2) == [step_folder(1), ""]


def test_an_upload_that_failed_leaves_nothing_and_is_not_called_again_by_ray(
    reporting, local, monkeypatch
):
    mine, door, _ = reporting

    def persist(source: Any, name: str) -> Any:
        door.asked.append(name)
        raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation")

    monkeypatch.setattr(mine._storage, "upload", persist)
    failures: queue.Queue[Any] = queue.Queue()
    exceptions = ray.train.report.__self__.execution_context.training_thread_runner  # type: ignore[attr-defined]
    monkeypatch.setattr(exceptions, "_exc_queue", failures)
    save(mine, 1)
    failure = failures.get(timeout=30)
    assert isinstance(failure._base_exc, UserError)
    assert "make room or see to the store" in str(failure)
    assert door.asked == [step_folder(1)]
    assert list(local.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_and_nothing_else(local, tmp_path):
    run = RunConfig(name="mine", storage="s3://here/runs")
    dead, alive = LocalFolders(run), LocalFolders(run)
    left, used = dead.new(), alive.new()
    (left / "trainer.pt").write_bytes(b"half")
    others = [RunConfig(name=name, storage=run.storage) for name in ("mine-2", "min", "other")]
    others += [RunConfig(name="mine", storage="s3://there/runs")]
    spared = []
    for other in others:  # Of other runs, dead too.
        folders = LocalFolders(other)
        spared.append(folders.new())
        os.close(folders._locks.pop(spared[-1]))
    assert LocalFolders(run).remove_left() == 0
    os.close(dead._locks.pop(left))  # As the system does when a process dies.
    assert LocalFolders(run).remove_left() == 1
    assert not left.exists()
    assert sorted(local.iterdir()) == sorted([used, *spared])
    assert "mine-" in used.name
    alive.remove(used)
    assert not used.exists()


def test_a_worker_removes_what_an_attempt_before_it_left(tmp_path, local, monkeypatch):
    mine, _ = saver(tmp_path, monkeypatch)
    left = mine._folders.new()
    os.close(mine._folders._locks.pop(left))
    saver(tmp_path, monkeypatch)
    assert not left.exists()


@pytest.mark.parametrize(
    ("error", "of_the_disk"),
    [
        (OSError(28, "No space left on device"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device"), True),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), True),
        (KeyError("a defect"), False),
        (ModelError("labels: a label must be one line"), False),
        (RuntimeError("shapes differ"), False),
        (SafetensorError("tensors share memory"), False),
    ],
)
def test_only_a_full_disk_lets_a_later_checkpoint_make_up_for_it(
    local, tmp_path, monkeypatch, error, of_the_disk
):
    mine, _ = saver(tmp_path, monkeypatch)

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save", fail)
    assert mine._write_local(content_of(mine._state), {"step": 0}, required=False) is None
    # What is none of the disk's is kept for all workers to end by.
    assert mine.defect is (None if of_the_disk else error)
    assert list(local.iterdir()) == []


@pytest.mark.parametrize("named", ["best_00000002", ""])
def test_models_that_a_killed_process_left_are_removed(tmp_path, monkeypatch, named):
    mine, _ = saver(tmp_path, monkeypatch)
    for step in (2, 4, 6):
        offer(mine, step, 0.1)
        mine.wait()
        assert mine._best
        mine._best._stored = -math.inf
        mine._best._folder = ""  # As if it had died before it removed the one before.
    assert len(stored(tmp_path)[0]) == 3
    record = tmp_path / "mine/best.json"
    entry = json.loads(record.read_text())
    record.write_text(json.dumps(entry | {"folder": named})) if named else record.unlink()
    again, _ = saver(tmp_path, monkeypatch)
    assert again._best
    assert stored(tmp_path)[0] == ([named] if named else [])
    # Where the record cannot be read, each may be the one that counts.
    (tmp_path / "mine/best_00000008").mkdir()
    record.write_text("{")
    saver(tmp_path, monkeypatch)
    assert (tmp_path / "mine/best_00000008").is_dir()
