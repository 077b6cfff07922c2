"""A storage that does not answer while a run recovers."""

import errno
from dataclasses import replace

import pytest
import ray.train
from ray.exceptions import ActorDiedError, RayTaskError

from pipeline.errors import UserError
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


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            ray.train.ControllerError(OSError(errno.ENOSPC, "No space left on device", "x.json")),
            ("run.storage=runs: ", "no space left on device: make room", "step_00000008"),
        ),
        (
            ray.train.ControllerError(OSError("AWS Error NETWORK_CONNECTION")),
            ("run.storage=runs: ", "AWS Error NETWORK_CONNECTION: see to the store"),
        ),
        (
            ray.train.WorkerGroupError("x", {1: OSError(errno.EROFS, "Read-only", "/spill/1")}),
            ("/spill/1: read-only: give a place that can be written to", "step_00000008"),
        ),
    ],
)
def test_a_disk_or_store_that_fails_is_no_defect(monkeypatch, failure, words):
    monkeypatch.setattr(snapshot, "open_storage", Outage(0).open)
    config = replace(TrainMixConfig(), run=RunConfig(name="mine", storage="runs"))
    told = explained(failure, config)
    assert isinstance(told, UserError)
    for word in words:
        assert word in str(told)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("OSError: [Errno 28] No space left on device: '/x/.marker'", "no space left on device: m"),
        ("PermissionError: [Errno 13] Failed to open local file '/x'", "permission denied: give"),
        ("OSError: When testing for existence: AWS Error NETWORK", "AWS Error NETWORK: see to"),
        ("KeyError: 'a defect'", ""),
    ],
)
def test_a_store_that_fails_before_the_run_begins_is_told(monkeypatch, said, words):
    monkeypatch.setattr(snapshot, "open_storage", Outage(0).open)
    cause = RayTaskError("TrainController.__init__", f"  File 'storage.py', line 439\n{said}", None)
    error = ActorDiedError(cause)  # As Ray raises it in the driver: with the text alone.
    told = explained(error, TrainMixConfig())
    if words:
        assert isinstance(told, UserError)
        assert words in str(told)
    else:
        assert told is error


def test_a_defect_of_the_controller_stays_one():
    bug = ray.train.ControllerError(KeyError("a defect"))
    assert explained(bug, TrainMixConfig()) is bug


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
