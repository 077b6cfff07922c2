"""The real parts of a re-training: the shards, the training, the evaluation, the registry."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial

from model.errors import ModelError
from pipeline import monitoring
from pipeline.checkpoints.files import VALIDATION, manifest_tags
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.shards.format import find_manifests
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, WorkersConfig
from pipeline.evaluation.launch import StartRay, evaluate
from pipeline.registry.locks import RetrainLocked
from pipeline.registry.registry import Registry
from pipeline.retraining.config import ComparisonConfig, RetrainConfig
from pipeline.retraining.data import DataState
from pipeline.retraining.record import DecisionRecord
from pipeline.retraining.runner import OUTCOMES, Result, Retraining, Trained, Work
from pipeline.retraining.state import Attempt
from pipeline.storage.open import open_storage
from pipeline.tracking.config import server_uri
from pipeline.tracking.mlflow_run import (
    MlflowUnavailable,
    client_of,
    is_unavailable,
    patient,
    prepare_environment,
)
from pipeline.tracking.preflight import check_server
from pipeline.tracking.redaction import redact_text
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.holding import RunHeld
from pipeline.training.driver.launch import absolute, plan_run, train
from pipeline.training.job import open_tracker
from pipeline.training.plan import make_plan

_ANSWER_WITHIN_S = 60
"""How long MLflow may take for one answer. Tracking waits less, but can send later."""
_RUN_KNOWN_S = 60.0
"""How long to wait for MLflow to name the run of a training that could not reach it."""


def retrain(config: RetrainConfig, start_ray: StartRay | None = None) -> Result:
    """Re-trains a registered model if there is reason to, or rolls it back.

    `start_ray` connects to Ray; see `pipeline.evaluation.launch.evaluate`.

    Raises:
        UserError: Something does not fit.
        MlflowUnavailable: MLflow does not answer; the next call continues.
        RetrainLocked: Another call is at it.
    """
    prepare_environment()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    base = training_config(config)
    config = replace(config, run=base.run, data=base.data, tracking=base.tracking)
    uri, name = server_uri(base.tracking), config.registry.name
    _check_shared(uri, base.run.storage)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ[variable] = uri  # What `models:/` means, here and in the workers.
    check_server(base.tracking)
    storage = open_storage(state_folder(config))
    start_ray = _shown(start_ray, name)
    record = DecisionRecord(client_of(uri), name, storage)
    work = Work(
        partial(data_now, base),
        partial(run_training, base, start_ray=start_ray),
        partial(run_evaluation, config, start_ray=start_ray),
    )
    retraining = Retraining(config, Registry(uri, name), record, storage, work)
    try:
        with patient(_ANSWER_WITHIN_S):
            result = retraining.rollback() if config.rollback else retraining.run()
            monitoring.RETRAININGS.add(model=name, outcome=result.kind)
            return result
    except (MlflowException, OperationalError, ModelError) as error:
        unavailable = is_unavailable(error)
        if isinstance(error, ModelError) and not unavailable:
            raise
        reason = redact_text(" ".join(str(error).split()))[:400]
        raise (MlflowUnavailable if unavailable else UserError)(
            f"tracking.uri={redact_text(uri)}: the registry failed ({reason}): "
            f"{retraining.champion_now()}; the same command goes on where this one ended"
        ) from error


def _shown(start_ray: StartRay | None, model: str) -> StartRay:
    """Shows Prometheus the re-training from when Ray is there, hours before its outcome."""

    def start(num_cpus: float, num_gpus: int = 0, least_cpus: float = 0.0) -> None:
        if start_ray is not None:
            start_ray(num_cpus, num_gpus, least_cpus)
        monitoring.RETRAINING_ACTIVE.set(1, model=model)
        for outcome in OUTCOMES:
            monitoring.RETRAININGS.start(model=model, outcome=outcome)

    return start


def _check_shared(uri: str, storage: str) -> None:
    """Refuses a registry in a file of this machine for models that lie where all machines see them.

    The nodes of a cluster, and the next call on another head, would each have one of their own.
    """
    if storage.startswith("s3://") and uri.partition(":")[0] in ("sqlite", "file", ""):
        raise UserError(
            f"tracking.uri={redact_text(uri)}: must be a server, since run.storage={storage} is "
            "shared by machines that cannot share a file: set tracking.uri or MLFLOW_TRACKING_URI "
            "to http://HOST:5000, or run.storage to a folder"
        )


def training_config(config: RetrainConfig) -> TrainMixConfig:
    """The recipe of the training alone, with absolute places."""
    values = {field.name: getattr(config, field.name) for field in fields(TrainMixConfig)}
    return absolute(TrainMixConfig(**values))


def state_folder(config: RetrainConfig) -> str:
    """The folder that holds locks, state and decisions of the registered model."""
    return f"{config.run.storage}/retrain/{config.registry.name}"


def data_now(config: TrainMixConfig) -> DataState:
    """Reads the manifests of the datasets that the mixture uses, and of the validation split."""
    training = make_plan(config).manifest_tags  # First: it says how to set what is not set.
    val = find_manifests(open_storage(config.data.shards), config.data.val_split)
    return DataState(training, manifest_tags(val, VALIDATION))


def run_training(base: TrainMixConfig, attempt: Attempt, start_ray: StartRay | None) -> Trained:
    """Trains the run of an attempt, or resumes it.

    Raises:
        UserError: The run is refused, or the shards were replaced just before it read them.
        RetrainLocked: Another process trains it.
    """
    run = replace(base.run, name=attempt.run_name, start_from=attempt.start_from)
    config = replace(base, run=run)
    try:
        outcome = train(plan_run(config), start_ray)
    except RunHeld as error:  # Neither a mistake nor the end of the attempt.
        raise RetrainLocked(str(error)) from None
    tags = read_provenance(outcome.checkpoint).tags
    if any(tags.get(tag) != value for tag, value in attempt.training.items()):
        raise UserError(
            f"data.shards={base.data.shards}: changed between the plan and the training of "
            f"{attempt.run_name}: call again when they are complete, with another run.name"
        )
    run_id = tags.get("mlflow_run_id") or _run_id(config)
    metrics = {k: float(v) for k, v in outcome.metrics.items() if isinstance(v, int | float)}
    return Trained(outcome.checkpoint, run_id, metrics)


def _run_id(config: TrainMixConfig) -> str:
    """The MLflow run of a training that ended before MLflow had answered."""
    with open_tracker(config) as tracker:
        run_id = tracker.wait_for_run(_RUN_KNOWN_S)
    if run_id is None:
        raise MlflowUnavailable(
            f"tracking.uri={redact_text(config.tracking.uri)}: MLflow does not answer, and the "
            f"model of {config.run.name} cannot be registered: the same command goes on from here"
        )
    return run_id


def run_evaluation(
    config: RetrainConfig, checkpoint: str, start_ray: StartRay | None
) -> Mapping[str, float]:
    """Figures of one model on the validation shards."""
    asked = {f.name: getattr(config.comparison, f.name) for f in fields(ComparisonConfig)}
    asked["workers"] = evaluation_workers(config)
    folder = hashlib.sha256(checkpoint.encode()).hexdigest()[:8]
    evaluation = EvaluateConfig(
        checkpoint=checkpoint,
        protocol="unified",
        out=f"{state_folder(config)}/evaluations/{folder}",
        shards=config.data.shards,
        split=config.data.val_split,
        tracking=config.tracking,
        **asked,
    )
    return evaluate(evaluation, start_ray).report["figures"]


def evaluation_workers(config: RetrainConfig) -> WorkersConfig:
    """The workers of a comparison; where it leaves them open, as many as the training can have.

    A call that continues after a training may find a cluster whose nodes are gone until they are
    asked for.
    """
    asked = config.comparison.workers
    room = int(config.logical_cpus // asked.cpus_per_worker)
    return replace(
        asked,
        num_workers=asked.num_workers or max(1, min(config.cluster.num_workers, room)),
        use_gpu=config.cluster.use_gpu if asked.use_gpu is None else asked.use_gpu,
    )
