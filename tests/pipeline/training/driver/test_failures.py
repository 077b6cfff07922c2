"""A storage that does not answer while a run recovers."""

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.train
import torch
import yaml
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

from model.errors import ModelError, Unreachable
from pipeline.errors import Outage, UserError
from pipeline.storage import retry as patience
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig, plain
from pipeline.training.driver.failures import FailureReporter, explained
from pipeline.training.driver.launch import absolute
from pipeline.training.driver.stream import patient_latest_step
from pipeline.training.saving import snapshot
from pipeline.training.stopping import start_signal
from tests.support.mini_shards import MiniShards

REPOSITORY = Path(__file__).resolve().parents[4]


class DeadStorage:
    """Stands for a storage that fails n times before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.asked = failures, 0

    def open(self, uri: str) -> "DeadStorage":
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
def test_a_failure_is_told_with_or_without_the_storage(monkeypatch, caplog, failures, words):
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(failures).open)
    FailureReporter(RunConfig(name="mine")).after_exception(None, {1: RuntimeError("gone")})
    assert "run mine: worker 1: RuntimeError: gone." in caplog.text
    assert words in caplog.text


def test_a_failure_names_the_node_where_the_worker_was(local_ray, monkeypatch, caplog):
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(0).open)
    stop = start_signal()
    stop.place.remote(1, "gpu-3 (node 12ab, process 7)")
    reporter = FailureReporter(RunConfig(name="mine"), stop)
    errors: dict[int, Exception] = {0: RuntimeError("waits"), 1: RuntimeError("gone")}
    reporter.after_exception(None, errors)
    told = "worker 0: RuntimeError: waits; worker 1 on gpu-3 (node 12ab, process 7): RuntimeError"
    assert told in caplog.text
    ray.kill(stop)
    caplog.clear()
    reporter.after_exception(None, errors)
    assert "worker 1: RuntimeError: gone. Unless" in caplog.text


@pytest.mark.parametrize(
    ("failures", "words"),
    [(0, "from checkpoint runs/lseg/step_00000008"), (1, "the storage does not answer: no answer")],
)
def test_what_is_told_at_the_end_is_the_failure_and_not_the_storage(
    monkeypatch, caplog, failures, words
):
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(failures).open)
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
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(0).open)
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
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(0).open)
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
    outage = DeadStorage(3)
    monkeypatch.setattr(snapshot, "open_storage", outage.open)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    assert patient_latest_step(TrainMixConfig()) == 8
    assert outage.asked == 4
    assert sum("does not answer, again in" in line for line in caplog.messages) == 3


def test_patience_has_an_end(monkeypatch):
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(1000).open)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    config = replace(TrainMixConfig(), train=TrainConfig(storage_patience_s=0.05))
    with pytest.raises(OSError, match="no answer"):
        patient_latest_step(config)


MISTAKE = UserError("data.shards=x: must be there: give another")
GONE = RuntimeError("Connection closed by peer")


def wrapped(error: Exception) -> Exception:
    """As a worker's error comes from Ray Train."""
    return UserExceptionWithTraceback(error, "")


def of_a_loader(error: Exception) -> Exception:
    """As one of a loader's tasks comes from Ray Data, through a worker."""
    return wrapped(RayTaskError("load", "its traceback", error).as_instanceof_cause())


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ({0: wrapped(MISTAKE)}, MISTAKE),
        ({0: wrapped(GONE), 1: wrapped(MISTAKE)}, MISTAKE),
        ({0: of_a_loader(MISTAKE)}, MISTAKE),
        ({0: wrapped(ModelError("model.features=0: wrong"))}, "model.features=0: wrong"),
        ({0: wrapped(Outage("run.storage=x: does not answer"))}, None),
        ({0: wrapped(Unreachable("text.pretrained=openai: the hub does not answer"))}, None),
        ({0: wrapped(GONE)}, None),
    ],
)
def test_a_mistake_ends_the_run_at_once_and_an_outage_does_not(monkeypatch, caplog, errors, told):
    monkeypatch.setattr(snapshot, "open_storage", DeadStorage(0).open)
    policy = DefaultFailurePolicy
    monkeypatch.setattr(
        policy, "_is_retryable_error", policy._is_retryable_error
    )  # To be put back.
    # As it arrives in the controller.
    reporter = pickle.loads(pickle.dumps(FailureReporter(RunConfig(name="mine"))))
    failure = ray.train.WorkerGroupError("x", errors)
    decision = policy(ray.train.FailureConfig(max_failures=3)).make_decision(failure)
    reporter.after_exception(None, errors)
    # Ray's own lines arrive here too, where a test before this one has set up Ray's logging.
    said = "".join(r.getMessage() for r in caplog.records if r.name.startswith("pipeline"))
    if told:
        assert decision == FailureDecision.RAISE
        assert said == ""  # The driver says it, in one line.
        assert str(explained(failure, TrainMixConfig())) == str(told)
    else:
        assert decision == FailureDecision.RETRY
        assert "goes on from checkpoint" in said


def test_a_storage_that_the_controller_gave_up_on_is_told():
    outage = Outage("s3://x: needs an answering server")
    assert explained(ray.train.ControllerError(outage), TrainMixConfig()) is outage


@pytest.mark.slow
def test_a_mistake_that_only_workers_see_is_one_line(mini_shards: MiniShards, tmp_path):
    weights = tmp_path / "other.pth"
    torch.save({"module.weight": torch.zeros(3)}, weights)
    config = absolute(mini_shards.config(tmp_path, "mine", num_workers=2, max_failures=3))
    settings = plain(config)
    backbone = settings["model"]["backbone"]
    backbone["pretrained"] = True
    backbone["kwargs"] |= {"pretrained_cfg_overlay": {"file": str(weights)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "jobs/train_mix.py", "--config", str(tmp_path / "recipe.yaml")],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said[-3000:]
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{weights}: fills 0.0 % of vit_tiny_patch16_224" in line
    # Ray may have tracebacks of its own on a busy machine.
    assert not any("Traceback" in text for text in said.splitlines() if "RayTrainWorker" in text)
    assert "Error in training function" not in said
    assert "ModelError" not in said  # In a line about a failure from which the run recovers.
