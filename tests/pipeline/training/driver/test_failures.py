"""A storage that does not answer while a run recovers."""

from dataclasses import replace

import pytest
import ray.train

from pipeline.storage import retry as patience
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.driver.failures import FailureReporter, explained
from pipeline.training.driver.stream import patient_latest_step
from pipeline.training.saving import snapshot


class Outage:
    """Stands for a storage that fails n times before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.asked = failures, 0

    def open(self, uri: str) -> "Outage":
        """In place of `open_storage`."""
        return self

    def exists(self, path: str) -> bool:
        """As of a storage."""
        self.asked += 1
        if self.asked <= self.failures:
            raise OSError("no answer")
        return True

    def read(self, path: str) -> bytes:
        """A snapshot after step 8."""
        return b'{"latest_checkpoint_result": {"checkpoint_dir_name": "step_00000008"}}'


@pytest.mark.parametrize(
    ("failures", "words"),
    [(0, "from checkpoint runs/mine/step_00000008"), (1, "from its newest checkpoint")],
)
def test_a_failure_is_told_with_or_without_the_storage(monkeypatch, capsys, failures, words):
    monkeypatch.setattr(snapshot, "open_storage", Outage(failures).open)
    FailureReporter(RunConfig(name="mine")).after_exception(None, {1: RuntimeError("gone")})
    said = capsys.readouterr().out
    assert "run mine: worker 1: RuntimeError: gone." in said
    assert words in said


@pytest.mark.parametrize(
    ("failures", "words"),
    [(0, "from checkpoint runs/lseg/step_00000008"), (1, "the storage does not answer: no answer")],
)
def test_what_is_told_at_the_end_is_the_failure_and_not_the_storage(
    monkeypatch, caplog, failures, words
):
    monkeypatch.setattr(snapshot, "open_storage", Outage(failures).open)
    failure = ray.train.TrainingFailedError("gone")
    assert explained(failure, TrainMixConfig()) is failure
    assert words in caplog.messages[-1]


def test_the_stream_outlasts_an_outage(monkeypatch, caplog):
    outage = Outage(3)
    monkeypatch.setattr(snapshot, "open_storage", outage.open)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    assert patient_latest_step(TrainMixConfig()) == 8
    assert outage.asked == 4
    assert sum("does not answer, again in" in line for line in caplog.messages) == 3


def test_patience_has_an_end(monkeypatch):
    monkeypatch.setattr(snapshot, "open_storage", Outage(1000).open)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    config = replace(TrainMixConfig(), train=TrainConfig(storage_patience_s=0.05))
    with pytest.raises(OSError, match="no answer"):
        patient_latest_step(config)
