"""Starts a training run with Ray Train, or resumes the one of the same name."""

import functools
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.data.ingest import (
    Corpus,
    build_mixture,
    configure_context,
    execution_options,
    open_corpus,
    training_stream,
)
from pipeline.data.mixture import Mixture
from pipeline.errors import UserError
from pipeline.training import checkpoint
from pipeline.training.config import TrainMixConfig, in_steps
from pipeline.training.job import Job
from pipeline.training.labels import training_labels
from pipeline.training.loop import train_worker
from pipeline.training.preflight import check_model
from pipeline.training.provenance import git_commit, library_versions, ray_job_id
from pipeline.training.questions import distractor_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    checkpoint: str
    """Folder of the last checkpoint: a local path or an s3:// address."""
    metrics: dict[str, float]
    """Of the last report: `train/loss`, `val/miou`, ..."""
    seconds: float
    """Wall time of this call."""


def train(config: TrainMixConfig) -> Outcome:
    """Trains to the end; Ray must be running.

    Args:
        config: The run. `run.storage` must be reachable from all nodes.

    Raises:
        UserError: The shards, the run's folder or the settings do not fit each other.
        ray.train.TrainingFailedError: Training failed more often than allowed.
    """
    began = time.perf_counter()
    config = absolute(config)
    check_model(config.model)
    corpus = open_corpus(config.data.shards, config.data.train_split)
    val = _validation_corpus(config)
    mixture = build_mixture(corpus, config.data, config.train.batch_size, config.run.seed)
    config = replace(config, train=in_steps(config.train, mixture.rows_per_pass))
    used = {name: corpus.manifests[name] for name in mixture.datasets}
    corpus = replace(corpus, manifests=used)
    labels = training_labels(used.values(), config.train.labels)
    distractor_texts(config.train.distractors, labels)
    checkpoint.check_resumable(config, labels.names)
    first = checkpoint.latest_step(config.run)
    _announce(config, corpus, mixture, len(labels), first)

    tags = {"git_commit": git_commit(), "ray_job_id": ray_job_id() or ""}
    tags |= {f"manifest.{name}": manifest.fingerprint for name, manifest in used.items()}
    tags |= {f"version.{name}": version for name, version in library_versions().items()}
    job = Job(config, labels, val, tags)
    cluster = config.cluster
    # The workers get the settings of this process's DataContext.
    configure_context(config.data.augment.crop_px, config.rows_per_pass)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=config.run.storage,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": _worker_environment()},
        ),
        # A callable is asked anew whenever workers start, also after a failure.
        datasets={"train": functools.partial(remaining_stream, config, corpus, mixture)},
        dataset_config=ray.train.DataConfig(execution_options=execution_options()),
    )
    result = trainer.fit()
    step = checkpoint.latest_step(config.run)
    folder = f"{config.run.storage}/{config.run.name}/{checkpoint.name_of(step)}"
    return Outcome(folder, dict(result.metrics or {}), time.perf_counter() - began)


def remaining_stream(config: TrainMixConfig, corpus: Corpus, mixture: Mixture) -> ray.data.Dataset:
    """The rows of the stream that the newest checkpoint has not used."""
    size = config.train.batch_size
    start = checkpoint.latest_step(config.run) * size
    stop = max(config.train.steps * size, start)
    return training_stream(corpus, mixture, config.data, config.rows_per_pass, start, stop)


def absolute(config: TrainMixConfig) -> TrainMixConfig:
    """Makes local paths absolute: the working folder of a Ray worker is another.

    Raises:
        UserError: A path is relative to a working folder that Ray uploaded for a job: what is
            written there is lost, and what is not in the upload is not there.
    """
    run = replace(config.run, storage=_absolute("run.storage", config.run.storage))
    data = config.data
    if data.shards:
        data = replace(data, shards=_absolute("data.shards", data.shards))
    folder = Path(run.storage) if "://" not in run.storage else Path.home() / ".lseg"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(config, run=run, data=data, tracking=config.tracking.resolved(folder))


def _absolute(key: str, uri: str) -> str:
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise UserError(
            f"{key}={uri}: is relative to the folder that Ray made for this job; give an absolute "
            "path that all nodes share, or an s3:// address"
        )
    return str(path.resolve())


def _validation_corpus(config: TrainMixConfig) -> Corpus | None:
    try:
        return open_corpus(config.data.shards, config.data.val_split)
    except UserError:
        logger.warning("no shards of split %r: no validation", config.data.val_split)
        return None


def _worker_environment() -> dict[str, str]:
    """Variables that the workers need and Ray does not pass on by itself."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    return {name: os.environ[name] for name in names if name in os.environ}


def _announce(
    config: TrainMixConfig, corpus: Corpus, mixture: Mixture, num_labels: int, first: int
) -> None:
    shares = ", ".join(
        f"{name} {share:.1%} of {corpus.sizes[name]}"
        for name, share in zip(mixture.datasets, mixture.shares, strict=True)
    )
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
