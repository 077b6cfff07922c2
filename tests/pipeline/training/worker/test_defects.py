"""A defect that keeps a checkpoint from being written ends the run at once, on every worker."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from model.errors import ModelError
from pipeline.training.worker import loop
from tests.support.lone_worker import LoneWorker, process_group  # noqa: F401
from tests.support.mini_shards import MiniShards

pytestmark = pytest.mark.usefixtures("process_group")


def run(mini_shards: MiniShards, folder, monkeypatch, fails_in: str, error: Exception) -> Any:
    """The loop of a run that cannot write its state at one of its calls, after step 4."""
    config = mini_shards.config(folder, "mine", steps=8, checkpoint_every=2, validate_every=4)
    saver = SimpleNamespace(
        defect=None, steps=[], news=0, report=lambda *_: None, wait=lambda: None
    )

    def call(name: str, *_: Any, **__: Any) -> None:
        saver.steps.append((name, worker.state.step))
        if name == fails_in and worker.state.step == 4:
            saver.defect, saver.news = error, 1

    saver.save = lambda *given, **how: call("save", *given, **how)
    saver.keep_best = lambda *given: call("keep_best", *given)
    monkeypatch.setattr(loop, "Saver", lambda *_: saver)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    worker = LoneWorker(config)
    shard = SimpleNamespace(iter_batches=lambda **_: worker.blocks_of_ray())
    monkeypatch.setattr(ray.train, "get_dataset_shard", lambda _: shard)
    monkeypatch.setattr(loop.Loop, "validate", lambda _: saver.keep_best({}) or {})
    return worker.loop.run(), saver.steps


@pytest.mark.parametrize("fails_in", ["save", "keep_best"])
def test_a_defect_ends_the_run_after_its_step(mini_shards, tmp_path, monkeypatch, fails_in):
    ended, steps = run(mini_shards, tmp_path, monkeypatch, fails_in, KeyError("a defect"))
    assert steps == [("save", 2), ("keep_best", 4), ("save", 4)]
    assert ended.failed == ended.stopped == ""
    assert "KeyError: 'a defect'" in ended.defect
    assert ended.why == ended.defect


def test_a_mistake_that_only_the_writer_sees_is_told_as_one(mini_shards, tmp_path, monkeypatch):
    mistake = ModelError("labels: a label must be one line")
    ended, steps = run(mini_shards, tmp_path, monkeypatch, "save", mistake)
    assert steps[-1] == ("save", 4)
    assert ended.failed == str(mistake)
    assert ended.defect == ""


def test_without_a_defect_all_steps_are_made(mini_shards, tmp_path, monkeypatch):
    ended, steps = run(mini_shards, tmp_path, monkeypatch, "nothing", KeyError())
    assert [step for name, step in steps if name == "save"] == [2, 4, 6, 8]
    assert ended.why == ""
