"""What the command refuses, waits for and asks of the cluster before any of it takes long."""

import socket
from dataclasses import fields, replace

import mlflow
import pytest
from mlflow.exceptions import MlflowException, RestException

from jobs.cli import main
from jobs.retrain import run
from model.errors import ModelError
from pipeline.errors import UserError
from pipeline.evaluation.config import WorkersConfig
from pipeline.retraining.config import ComparisonConfig, RetrainConfig
from pipeline.retraining.launch import evaluation_workers, run_evaluation
from pipeline.tracking.mlflow_run import is_unavailable
from pipeline.training.config import ClusterConfig, TrainMixConfig


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the job in this process, whose variables it sets; its exit code and its message."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)

    def call(*words: str) -> tuple[int, str]:
        code = main(RetrainConfig, run, words)
        return code, capsys.readouterr().err.strip().splitlines()[-1]

    return call


def test_without_mlflow_a_scheduler_may_try_again(command, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # And nobody listens.
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        storage = ("--run.storage", str(tmp_path))
        code, message = command(*storage, "--tracking.uri", uri, "--rollback")
    assert code == 69
    assert message.startswith(f"error: registry {uri}, model lseg: ")
    assert "and that the server answers" in message


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (MlflowException("no connection"), True),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}), True),
        (RestException({"error_code": "UNAUTHENTICATED", "message": "who are you"}), False),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}), False),
        (KeyError("a defect"), False),
    ],
)
def test_no_answer_is_told_from_a_refusal(cause, expected):
    assert is_unavailable(cause) is expected
    error = ModelError("models:/lseg@champion: cannot be had")
    error.__cause__ = cause  # As `raise ... from` does.
    assert is_unavailable(error) is expected


def test_a_registry_in_a_file_is_refused_beside_shared_storage(command, tmp_path, monkeypatch):
    expected = "must be a server, since run.storage=s3://bucket/runs is shared by machines"
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (("--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"), ()):
        if not uri:  # Then a file is what tracking takes by itself.
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        code, message = command("--run.storage", "s3://bucket/runs", *uri)
        assert (code, expected in message) == (2, True), message


def recipe(cpus_per_worker: float = 2.0, use_gpu: bool = True, **workers) -> RetrainConfig:
    cluster = ClusterConfig(num_workers=4, use_gpu=use_gpu, cpus_per_worker=cpus_per_worker)
    return RetrainConfig(
        cluster=cluster, comparison=ComparisonConfig(workers=WorkersConfig(**workers))
    )


def test_the_comparison_has_the_workers_of_the_recipe():
    found = evaluation_workers(recipe())
    assert (found.num_workers, found.use_gpu, found.cpus_per_worker) == (4, True, 1.0)
    found = evaluation_workers(recipe(num_workers=2, use_gpu=False, threads=3))
    assert (found.num_workers, found.use_gpu, found.threads) == (2, False, 3)
    # No more than fit where the training fits: 4 x 0.25, and the loaders.
    config = recipe(cpus_per_worker=0.25, use_gpu=False)
    assert config.logical_cpus < 4
    assert evaluation_workers(config).num_workers == int(config.logical_cpus)


def test_the_comparison_waits_for_the_gpus_of_the_recipe(mini_shards, small_checkpoint, tmp_path):
    """Also in a call that goes on after the training, when the cluster is but a head again."""
    mini = mini_shards.config(tmp_path / "runs", "mini")
    values = {field.name: getattr(mini, field.name) for field in fields(TrainMixConfig)}
    config = replace(RetrainConfig(**values), cluster=recipe().cluster)
    asked = []

    def start_ray(num_cpus: float, num_gpus: int = 0) -> None:
        asked.append((num_cpus, num_gpus))
        raise UserError("it is too small")

    with pytest.raises(UserError, match="it is too small"):
        run_evaluation(config, str(small_checkpoint), start_ray)
    assert asked == [(4.0, 4)]
