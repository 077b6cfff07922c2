"""Starts a training run with Ray Train, or resumes the one of the same name."""

import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray
import ray.data
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer

from model.checkpoint import is_uri
from model.config import TABLE, ModelConfig, reads_pretrained
from model.packages import PACKAGE
from model.text import WEIGHT_SUFFIXES
from pipeline import monitoring
from pipeline.checkpoints.environment import (
    git_commit,
    library_versions,
    ray_job_id,
    source_fingerprint,
)
from pipeline.checkpoints.origin import origin_tags
from pipeline.checkpoints.provenance import read_provenance
from pipeline.checkpoints.resolvers import mlflow_variables, pinned, worker_runtime_env
from pipeline.checkpoints.weights import weights_tags
from pipeline.data.ingest.stream import configure_context
from pipeline.errors import UserError
from pipeline.storage.lease import Lease
from pipeline.storage.places import local_state_dir, resolve_location
from pipeline.tracking.preflight import check_server
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.failures import (
    FailureReporter,
    TrainingDefect,
    explained,
    way_on,
)
from pipeline.training.driver.holding import held
from pipeline.training.driver.preflight import check_model, check_trained_text
from pipeline.training.driver.resumable import first_step
from pipeline.training.driver.stream import StreamDealer, remaining_rows
from pipeline.training.job import EarlyEnd, Job, Lineage
from pipeline.training.plan import RunPlan, make_plan
from pipeline.training.saving import snapshot
from pipeline.training.stopping import TrainingStopped, outcome_of, run_stoppable, start_signal
from pipeline.training.worker.loop import train_worker

logger = logging.getLogger(__name__)

_GRACE_S = 30.0
"""Seconds that the workers of other nodes have after the announced end of one."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    checkpoint: str
    """Folder of the last checkpoint: a local path or an s3:// address."""
    metrics: dict[str, float]
    """Metrics of the last report: `train/loss`, `val/miou`, ..."""
    seconds: float
    """Wall time of the training, without making its plan."""


def plan_run(config: TrainMixConfig) -> RunPlan:
    """Makes the plan of a run, after all that the configuration alone can get wrong.

    Args:
        config: The run. `run.storage` must be reachable from all nodes.

    Raises:
        UserError: The shards, the storage or the settings do not fit each other.
        ModelError: The network cannot be built.
    """
    config = absolute(config)
    check_model(config.model)
    plan = make_plan(config)
    check_trained_text(plan.config, plan.labels)
    return plan


def train(
    plan: RunPlan,
    start_ray: Callable[[float, int, float], None] | None = None,
    lineage: Lineage | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Outcome:
    """Trains to the end.

    Args:
        plan: The run; see `plan_run`.
        start_ray: Called with the numbers of logical CPUs, of GPUs, and of the CPUs without
            which it cannot begin, once there is something to train; None where Ray is running.
        lineage: The larger undertaking that the run is part of.
        callbacks: Further ones for Ray Train, such as Tune's.

    Raises:
        UserError: The run's folder holds another run; or the gradients are not finite any more.
        RunHeld: Another process trains the run.
        MlflowRefused: MLflow answers, and would never take the run.
        TrainingDefect: No checkpoint can be written, wherever.
        TrainingStopped: It was asked to stop; the message says from where it resumes.
        ray.train.TrainingFailedError: Training failed more often than allowed.
    """
    began = time.perf_counter()
    run = plan.config.run
    lineage = lineage or Lineage()
    with held(run) as lease:
        # What the run's folder can forbid is refused before Ray starts: a mistake costs seconds.
        first = first_step(plan)
        if first >= plan.config.train.steps:
            logger.info("run %s is finished: it has %d steps", run.name, first)
        else:
            if not lineage.parent_run_id:  # The parent is a run of the same experiment.
                check_server(plan.config.tracking)
            plan.announce(first)
            if start_ray is not None:
                needed = plan.config
                start_ray(needed.logical_cpus, needed.fewest_gpus, needed.least_cpus)
            # A trial of a sweep runs in a process of Ray's, whose command says nothing.
            command = () if lineage.parent_run_id else sys.argv
            origin = origin_tags(git_commit(), not first, command)
            tags = origin | plan.validation_tags | lineage.tags
            monitoring.WORKERS_WANTED.set(plan.config.cluster.num_workers, run=run.name)
            with monitoring.TRAINING_ACTIVE.while_in(run=run.name):
                _fit(plan, replace(lineage, tags=tags), lease, callbacks)
    # A run that ends has stored the checkpoint of its last step.
    address = snapshot.address_of(run, max(first, plan.config.train.steps))
    return Outcome(address, read_provenance(address).metrics, time.perf_counter() - began)


def _fit(
    plan: RunPlan, lineage: Lineage, lease: Lease, callbacks: Sequence[ray.train.UserCallback]
) -> None:
    """Runs the workers to the end of the run, on the Ray that this process is connected to."""
    # The stop signal exists before the workers that listen to it, and its handler before `fit`.
    run, stop = plan.config.run, start_signal()
    lease.on_loss(lambda: stop.request.remote("another process has taken over"))
    tags = {"git_commit": git_commit(), "source_fingerprint": source_fingerprint()}
    tags |= {"ray_job_id": ray_job_id() or ""} | plan.manifest_tags
    tags |= weights_tags(plan.config.model)
    tags |= {f"version.{name}": version for name, version in library_versions().items()}
    job = Job(plan, stop, tags, lineage)
    ended = _attempt(job, callbacks)
    # Workers that heard of a node's leaving have ended once their checkpoint was stored: what they
    # did until Ray takes the node away would be lost, so others start without waiting for that.
    while ended.leaving:
        logger.warning(
            "run %s: node %s is about to leave; workers start without it %s",
            run.name,
            ended.leaving,
            way_on(run),
        )
        ended = _attempt(job, callbacks)
    if ended.failed:
        raise UserError(ended.failed)
    if ended.defect:
        raise TrainingDefect(
            f"run {run.name}: a defect of the program kept a checkpoint from being written; the "
            f"same command resumes {way_on(run)}\n\n{ended.defect}"
        )
    if ended.stopped:
        raise outcome_of(ray.get(stop.reason.remote()))(
            f"run {run.name} {ended.stopped}; the same command resumes {way_on(run)}"
        )


def _attempt(job: Job, callbacks: Sequence[ray.train.UserCallback]) -> EarlyEnd:
    """Runs the workers until they end without an error; they may have had a reason to end early."""
    run = job.plan.config.run
    try:
        result = run_stoppable(_trainer(job, callbacks).fit, job.stop)
    except (ray.train.TrainingFailedError, RayError) as error:
        raise explained(error, job.plan.config) from error
    except TrainingStopped as stopped:  # No worker was there to write a checkpoint.
        raise type(stopped)(
            f"run {run.name} {stopped}, so no further checkpoint was written; the same command "
            f"resumes {way_on(run)}"
        ) from None
    return result.return_value or EarlyEnd()


def _trainer(job: Job, callbacks: Sequence[ray.train.UserCallback]) -> TorchTrainer:
    config, cluster = job.plan.config, job.plan.config.cluster
    # The workers get the settings of this process's DataContext.
    configure_context()
    most, fewest = cluster.num_workers, cluster.min_workers
    # Variables that the workers need and Ray does not pass on by itself.
    variables = mlflow_variables()
    variables |= (worker_runtime_env(config.run.start_from) or {}).get("env_vars", {})
    if config.train.deterministic:
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # Read once, when CUDA starts.
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if cluster.use_gpu else "gloo",
            timeout_s=math.ceil(cluster.collective_timeout_s),
        ),
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
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_failures,
                # A checkpoint that is on its way when a node goes is still stored by the others.
                # relax_collectives_on_preemption would not help: it lets the others report without
                # the workers of that node, whose part in the step's all-reduce they lack before.
                preemption_grace_s=_GRACE_S,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": variables},
            callbacks=[
                snapshot.SnapshotKeeper(config.run, config.train.storage_patience_s),
                FailureReporter(config.run, job.stop),
                *callbacks,
            ],
        ),
        # A callable is asked anew whenever workers start, also after a failure.
        datasets={"train": functools.partial(remaining_rows, job.plan)},  # type: ignore[dict-item]
        dataset_config=StreamDealer(),
    )


def absolute(config: TrainMixConfig) -> TrainMixConfig:
    """Makes local paths absolute: the working folder of a Ray worker is another.

    Raises:
        UserError: A path is relative to a working folder that Ray uploaded for a job: what is
            written there is lost, and what is not in the upload is not there. Or the storage
            cannot be written to.
    """
    run = replace(config.run, storage=resolve_location("run.storage", config.run.storage))
    if start := run.start_from:
        start = pinned(start) if is_uri(start) else resolve_location("run.start_from", start)
        run = replace(run, start_from=start)
    data = config.data
    if data.shards:
        data = replace(data, shards=resolve_location("data.shards", data.shards))
    folder = local_state_dir("run.storage", config.run.storage, run.storage)
    model, tracking = _with_absolute_files(config.model), config.tracking.resolved(folder)
    return replace(config, run=run, data=data, model=model, tracking=tracking)


def _with_absolute_files(model: ModelConfig) -> ModelConfig:
    """The network's settings with the files that they name by absolute paths."""
    backbone, text = model.backbone, model.text
    if backbone.weights and not backbone.weights.startswith(PACKAGE):
        weights = resolve_location("model.backbone.weights", backbone.weights)
        backbone = replace(backbone, weights=weights)
    if text.encoder.startswith(TABLE):
        file = resolve_location("model.text.encoder", text.encoder.removeprefix(TABLE))
        text = replace(text, encoder=f"{TABLE}{file}")
    if reads_pretrained(text.encoder) and text.pretrained.endswith(WEIGHT_SUFFIXES):
        file = resolve_location("model.text.pretrained", text.pretrained)
        text = replace(text, pretrained=file)
    return replace(model, backbone=backbone, text=text)
