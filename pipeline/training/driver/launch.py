"""Starts a training run with Ray Train, or resumes the one of the same name."""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import ray
import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from model.checkpoint import is_uri
from pipeline.checkpoints.environment import git_commit, library_versions, ray_job_id
from pipeline.checkpoints.resolvers import mlflow_variables, pinned, worker_runtime_env
from pipeline.data.datasets.few_shot.training import without_fold
from pipeline.data.ingest.mixture import Mixture
from pipeline.data.ingest.stream import (
    Corpus,
    build_mixture,
    configure_context,
    execution_options,
    open_corpus,
)
from pipeline.data.shards.format import Manifest
from pipeline.errors import UserError
from pipeline.storage.places import local_state_dir, resolve_location
from pipeline.training.config import TrainMixConfig, in_steps
from pipeline.training.driver.failures import FailureReporter, explained, way_on
from pipeline.training.driver.preflight import check_model
from pipeline.training.driver.resumable import check_resumable
from pipeline.training.driver.stream import StreamDealer, remaining_stream
from pipeline.training.job import Job, Lineage, Verdict
from pipeline.training.questions.episodes import episode_labels
from pipeline.training.questions.labels import LabelSpace, training_labels
from pipeline.training.questions.questions import distractor_texts
from pipeline.training.saving import checkpoint
from pipeline.training.state.warm_start import check_start
from pipeline.training.stopping import TrainingStopped, outcome_of, run_stoppable, start_signal
from pipeline.training.worker.loop import train_worker
from pipeline.training.worker.validation import validation_corpus

logger = logging.getLogger(__name__)

_SHOWN = 12
"""Datasets that are named one by one; the classes of a few-shot benchmark are more."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    checkpoint: str
    """Folder of the last checkpoint: a local path or an s3:// address."""
    metrics: dict[str, float]
    """Of the last report: `train/loss`, `val/miou`, ..."""
    seconds: float
    """Wall time of this call."""


def train(
    config: TrainMixConfig,
    start_ray: Callable[[float], None] | None = None,
    lineage: Lineage | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Outcome:
    """Trains to the end.

    Args:
        config: The run. `run.storage` must be reachable from all nodes.
        start_ray: Called with the number of logical CPUs once there is something to train; None
            where Ray is running.
        lineage: What the run is part of.
        callbacks: Further ones for Ray Train, such as Tune's.

    Raises:
        UserError: The shards, the run's folder or the settings do not fit each other; or the
            gradients are not finite any more.
        TrainingStopped: It was asked to stop; the message says from where it resumes.
        ray.train.TrainingFailedError: Training failed more often than allowed.
    """
    began = time.perf_counter()
    config = absolute(config)
    check_model(config.model)
    corpus = training_corpus(config)
    mixture = build_mixture(corpus, config.data, config.train.batch_size, config.run.seed)
    config = replace(config, train=in_steps(config.train, mixture.rows_per_epoch))
    used = {name: corpus.manifests[name] for name in mixture.datasets}
    corpus = replace(corpus, manifests=used)
    val = None  # The test fold is for `jobs/evaluate.py`; pairs have no split to validate on.
    if config.train.test_fold is None:
        val = validation_corpus(config, corpus)
    labels = labels_of(used.values(), config, corpus)
    distractor_texts(config.train.distractors, labels)
    checkpoint.repair(config.run)
    shards = manifest_tags(used)
    check_resumable(config, labels, shards)
    first = checkpoint.latest_step(config.run)
    if first >= config.train.steps:
        logger.info("run %s is finished: it has %d steps", config.run.name, first)
        return _outcome(config, began)
    if not first:
        check_start(config)
    _announce(config, corpus, mixture, len(labels), first)
    if start_ray is not None:
        start_ray(config.logical_cpus)

    tags = {"git_commit": git_commit(), "ray_job_id": ray_job_id() or ""}
    tags |= shards
    tags |= {f"version.{name}": version for name, version in library_versions().items()}
    stop = start_signal()
    lineage = lineage or Lineage()
    job = Job(config, labels, corpus, mixture, val, stop=stop, tags=tags, lineage=lineage)
    stream = functools.partial(remaining_stream, config, corpus, mixture)
    trainer = _trainer(job, stream, callbacks)
    try:
        result = run_stoppable(trainer.fit, stop)
    except ray.train.TrainingFailedError as error:
        raise explained(error, config) from error
    except TrainingStopped as stopped:  # While no worker was there.
        raise type(stopped)(
            f"run {config.run.name} {stopped}, so no further checkpoint was written; the same "
            f"command resumes {way_on(config.run)}"
        ) from None
    verdict: Verdict = result.return_value or Verdict()
    if verdict.failed:
        raise UserError(verdict.failed)
    if verdict.stopped:
        raise outcome_of(ray.get(stop.reason.remote()))(
            f"run {config.run.name} {verdict.stopped}; the same command resumes "
            f"{way_on(config.run)}"
        )
    return _outcome(config, began)


def training_corpus(config: TrainMixConfig) -> Corpus:
    """The training split, without the classes of the test fold."""
    corpus = open_corpus(config.data.shards, config.data.train_split)
    fold = config.train.test_fold
    if fold is None:
        return corpus
    return replace(corpus, manifests=without_fold(corpus.manifests, fold))


def manifest_tags(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The fingerprint of each dataset's shards; of very many, one over all."""
    prints = {name: manifest.fingerprint for name, manifest in manifests.items()}
    if len(prints) <= _SHOWN:
        return {f"manifest.{name}": value for name, value in prints.items()}
    whole = hashlib.sha256("".join(f"{n} {v}\n" for n, v in prints.items()).encode()).hexdigest()
    return {"manifests": f"{whole[:16]} ({len(prints)} datasets)"}


def labels_of(
    manifests: Collection[Manifest], config: TrainMixConfig, corpus: Corpus
) -> LabelSpace:
    """The label space of a run: of few-shot pairs, or of the classes that its masks show."""
    pairs = episode_labels(manifests, config.train)
    return pairs or training_labels(manifests, config.train.labels, corpus.taxonomy)


def _trainer(
    job: Job, stream: Callable[[], ray.data.Dataset], callbacks: Sequence[ray.train.UserCallback]
) -> TorchTrainer:
    config, cluster = job.config, job.config.cluster
    # The workers get the settings of this process's DataContext.
    configure_context(config.data.augment.crop_px, config.rows_per_pass)
    most, fewest = cluster.num_workers, cluster.min_workers
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(fewest, most) if fewest else most,
            elastic_resize_monitor_interval_s=cluster.resize_every_s,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": 1} if cluster.use_gpu else {}),
            placement_strategy=cluster.placement,
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=config.run.storage,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": _worker_environment(config)},
            callbacks=[
                checkpoint.SnapshotKeeper(config.run),
                FailureReporter(config.run),
                *callbacks,
            ],
        ),
        # A callable is asked anew whenever workers start, also after a failure.
        datasets={"train": stream},
        dataset_config=StreamDealer(execution_options=execution_options()),
    )


def _outcome(config: TrainMixConfig, began: float) -> Outcome:
    run, step = config.run, checkpoint.latest_step(config.run)
    metrics = checkpoint.metrics_of(run, step)
    return Outcome(checkpoint.address_of(run, step), metrics, time.perf_counter() - began)


def absolute(config: TrainMixConfig) -> TrainMixConfig:
    """Makes local paths absolute: the working folder of a Ray worker is another.

    Raises:
        UserError: A path is relative to a working folder that Ray uploaded for a job: what is
            written there is lost, and what is not in the upload is not there. Or the storage
            cannot be written to.
    """
    run = replace(config.run, storage=resolve_location("run.storage", config.run.storage))
    if run.start_from:
        start = run.start_from
        start = pinned(start) if is_uri(start) else resolve_location("run.start_from", start)
        run = replace(run, start_from=start)
    data = config.data
    if data.shards:
        data = replace(data, shards=resolve_location("data.shards", data.shards))
    folder = local_state_dir("run.storage", config.run.storage, run.storage)
    return replace(config, run=run, data=data, tracking=config.tracking.resolved(folder))


def _worker_environment(config: TrainMixConfig) -> dict[str, str]:
    """Variables that the workers need and Ray does not pass on by itself."""
    found = mlflow_variables()
    found |= (worker_runtime_env(config.run.start_from) or {}).get("env_vars", {})
    if config.train.deterministic:
        found["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # Read once, when CUDA starts.
    return found


def _announce(
    config: TrainMixConfig, corpus: Corpus, mixture: Mixture, num_labels: int, first: int
) -> None:
    named = list(zip(mixture.datasets, mixture.shares, strict=True))
    shares = ", ".join(
        f"{name} {share:.1%} of {corpus.sizes[name]}" for name, share in named[:_SHOWN]
    )
    if len(named) > _SHOWN:
        shares += f", ... ({len(named)} in all)"
    logger.info("mixture: %s", shares)
    logger.info(
        "run %s: %d labels, %d steps of %d images on %d workers%s",
        config.run.name,
        num_labels,
        config.train.steps,
        config.train.batch_size,
        config.cluster.num_workers,
        f", resuming after step {first}" if first else "",
    )
