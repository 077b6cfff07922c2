"""A stop or a notice in the same step as a validation: the checkpoint first, nothing is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from pipeline.training.config import TrainMixConfig
from pipeline.training.job import EarlyEnd
from pipeline.training.saving import checkpoint
from pipeline.training.worker import loop
from tests.support.lone_worker import LoneWorker, process_group  # noqa: F401
from tests.support.mini_shards import MiniShards

pytestmark = pytest.mark.usefixtures("process_group")

NOTICE = SimpleNamespace(preempted_node_ids=["node"])


class Recorder:
    """Notes what a `Loop` does beside its steps, and writes its checkpoints into one folder."""

    def __init__(self, config: TrainMixConfig, folder: Path, monkeypatch) -> None:
        self.config, self.folder, self.events = config, folder, list[tuple[str, int]]()
        self.notice_from = self.stop_at = 10**9
        self.defect: Exception | None = None
        self.news = 0
        self.stop = SimpleNamespace(reason="")
        self.worker: Any = None
        monkeypatch.setattr(ray.train, "get_dataset_shard", lambda _: self)
        monkeypatch.setattr(ray.train, "get_preemption_info", self.preemption_info)
        monkeypatch.setattr(loop, "Saver", lambda *_: self)
        monkeypatch.setattr(loop.Loop, "validate", self.validate)

    def run(self, source: Path | None = None) -> Any:
        """The verdict of a worker from a checkpoint, or from the start."""
        self.events = []
        self.worker = LoneWorker(self.config, source=source, stop=self.stop)
        return self.worker.loop.run()

    def iter_batches(self, **_: Any) -> Any:
        """As of Ray's iterator; asks for the stop in time."""
        for block in self.worker.blocks_of_ray():
            self.stop.reason = "SIGTERM" if self.worker.state.step + 1 == self.stop_at else ""
            yield block

    def preemption_info(self) -> Any:
        """As Ray's."""
        return NOTICE if self.worker.state.step >= self.notice_from else None

    def validate(self, *_: Any) -> dict[str, float]:
        """In place of the validation."""
        self.events.append(("validate", self.worker.state.step))
        return {"val/miou": 0.5}

    def save(
        self, metrics: dict[str, float], *, required: bool, bypass_backlog: bool = False
    ) -> None:
        """Writes at once."""
        state = self.worker.state
        self.events.append(("save", state.step))
        folder = self.folder / str(state.step)
        folder.mkdir(exist_ok=True)
        provenance = checkpoint.provenance_of(self.config, self.worker.labels, metrics, {})
        checkpoint.save(folder, checkpoint.content_of(state), provenance)

    def report(self, waiting: str = "") -> None:
        """Notes it where there is something to report."""
        if self.news:
            self.events.append(("report", self.worker.state.step))
        self.news = 0

    def wait(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def recorder(mini_shards: MiniShards, tmp_path, monkeypatch) -> Recorder:
    config = mini_shards.config(tmp_path, "hurry", steps=6, validate_every=2)
    return Recorder(config, tmp_path, monkeypatch)


def test_without_a_hurry_each_validation_comes_before_its_checkpoint(recorder):
    recorder.run()
    assert recorder.events == [("validate", 2), ("validate", 4), ("validate", 6), ("save", 6)]


def test_a_stop_is_served_before_a_validation_which_the_resumed_run_makes(recorder, tmp_path):
    recorder.stop_at = 4
    assert recorder.run().stopped == "asked to stop, after step 4"
    assert recorder.events == [("validate", 2), ("save", 4)]
    recorder.stop_at = 10**9
    assert recorder.run(tmp_path / "4").stopped == ""
    assert recorder.events == [("validate", 4), ("validate", 6), ("save", 6)]


def test_a_stop_after_another_step_leaves_no_validation_over(recorder, tmp_path):
    recorder.stop_at = 3
    recorder.run()
    assert recorder.events == [("validate", 2), ("save", 3)]
    recorder.stop_at = 10**9
    recorder.run(tmp_path / "3")
    assert recorder.events == [("validate", 4), ("validate", 6), ("save", 6)]


def test_a_notice_is_asked_for_and_served_before_a_validation(recorder, tmp_path):
    assert recorder.config.cluster.preemption_every == 10  # It looks though it is not yet time.
    recorder.notice_from = 3
    assert recorder.run() == EarlyEnd(leaving="node")
    # All workers end as soon as the checkpoint is there, and others start without the node.
    assert recorder.events == [("validate", 2), ("save", 4)]
    recorder.notice_from = 10**9
    recorder.run(tmp_path / "4")
    assert recorder.events == [("validate", 4), ("validate", 6), ("save", 6)]


def test_the_workers_after_a_notice_make_the_validation(mini_shards, tmp_path, monkeypatch):
    settings = {"steps": 6, "validate_every": 4, "checkpoint_every": 5}
    recorder = Recorder(mini_shards.config(tmp_path, "owes", **settings), tmp_path, monkeypatch)
    recorder.notice_from = 3
    recorder.run()
    assert recorder.events == [("save", 4)]
    recorder.events, recorder.notice_from = [], 10**9
    recorder.run(tmp_path / "4")
    assert recorder.events == [("validate", 4), ("save", 5), ("validate", 6), ("save", 6)]


def test_a_notice_at_the_last_step_does_not_cost_the_validation(recorder):
    recorder.notice_from = 5
    assert recorder.run() == EarlyEnd()
    assert recorder.events[-2:] == [("validate", 6), ("save", 6)]


def test_what_is_written_is_reported_after_the_next_step_and_at_the_end(
    mini_shards, tmp_path, monkeypatch
):
    config = mini_shards.config(tmp_path, "news", steps=6, checkpoint_every=3, validate_every=4)
    recorder = Recorder(config, tmp_path, monkeypatch)
    save = recorder.save

    def save_with_news(*given: Any, **how: Any) -> None:
        save(*given, **how)
        recorder.news = 1

    monkeypatch.setattr(recorder, "save", save_with_news)
    recorder.run()
    assert recorder.events[:3] == [("save", 3), ("report", 4), ("validate", 4)]
    assert recorder.events[3:] == [("validate", 6), ("save", 6), ("report", 6)]
