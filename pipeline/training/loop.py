"""The training loop of one worker, as Ray Train runs it on each.

One optimiser step: fetch the micro-batches, count the labelled pixels of the GLOBAL batch, forward
and backward with the loss divided by that count, all-rank finite check, clip, step, schedule. So N
workers make the same update as one worker with an N times larger batch. Now and then: log,
validate, checkpoint. Host synchronisations are marked.
"""

import logging
import os
import sys
import tempfile
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch import distributed as dist

from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from model.text import TextEncoder, build_text_encoder
from pipeline.data.ingest import Timed
from pipeline.data.taxonomy import IGNORE
from pipeline.training import checkpoint
from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.job import Job, open_tracker
from pipeline.training.progress import Progress
from pipeline.training.questions import Questions
from pipeline.training.regularizer_watch import RegularizerWatch
from pipeline.training.tracking import Tracker
from pipeline.training.validation import validate
from pipeline.training.wrapping import wrap

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point of each training worker; `settings["job"]` is a `Job`."""
    job: Job = settings["job"]
    config = job.config
    _log_to_driver()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        share = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
        torch.set_num_threads(config.cluster.threads_per_worker or share)

    torch.manual_seed(config.run.seed)
    encoder = build_text_encoder(config.model.text)
    lseg = build_lseg(config.model, encoder.dim).to(device)
    optimizer = build_optimizer(lseg, config.train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))
    latest = ray.train.get_checkpoint()
    first_step = checkpoint.restore(latest, lseg, optimizer, schedule, device) if latest else 0
    wrapped = wrap(lseg, config.train, device, world)

    with ExitStack() as stack:
        tracker = stack.enter_context(open_tracker(config, job.tags)) if rank == 0 else None
        Loop(job, lseg, wrapped, encoder, optimizer, schedule, device, tracker).run(first_step)


class Loop:
    """The state of a worker between two steps."""

    def __init__(
        self,
        job: Job,
        lseg: LSeg,
        wrapped: nn.Module,
        encoder: TextEncoder,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        device: torch.device,
        tracker: Tracker | None,
    ) -> None:
        self.job, self.config, self.train = job, job.config, job.config.train
        self.lseg, self.wrapped = lseg, wrapped
        self.optimizer, self.schedule = optimizer, schedule
        self.device, self.tracker = device, tracker
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.questions = Questions(self.config, job.labels, encoder, device)
        self.amp = _autocast(self.train.precision, device)
        self.watch = RegularizerWatch(lseg, tracker, self.train.log_every, self.amp)
        self.nonfinite = 0

    def run(self, first_step: int) -> None:
        """Trains from `first_step` to the end."""
        shard = ray.train.get_dataset_shard("train")
        assert shard is not None
        rows = self.config.rows_per_pass
        stream: Any = shard.iter_batches(batch_size=rows, prefetch_batches=2)
        batches = Timed(iter(stream))
        progress = Progress(first_step, self.train.steps, self.train.batch_size)
        metrics: dict[str, float] = {}
        for step in range(first_step, self.train.steps):
            loss, grad_norm = self.step(step, batches)
            done = step + 1
            if done % self.train.log_every == 0 or done == self.train.steps:
                dist.all_reduce(loss)  # host synchronisation below, at `.item()`
                metrics = self.log(done, loss.item(), grad_norm, progress, batches)
            if done == self.train.steps or _every(done, self.train.validate_every):
                metrics |= self.validate(done)
                progress.skip()
            if done == self.train.steps or _every(done, self.train.checkpoint_every):
                self.save(done, metrics)

    def step(self, step: int, batches: Timed) -> tuple[Tensor, float]:
        """One optimiser step.

        Returns:
            loss: 0-d, this worker's part of the mean loss over the global batch.
            grad_norm: Norm of the gradients before clipping.
        """
        self.optimizer.zero_grad(set_to_none=True)
        text_KC, lut = self.questions.at(step)
        micro = [self.fetch(step, part, batches, lut) for part in range(self.train.accumulate)]
        num_labelled = torch.stack([(label != IGNORE).sum() for _, label in micro]).sum()
        dist.all_reduce(num_labelled)
        self.watch.look(step, micro[0][0], text_KC)
        # DDP averages gradients over workers; the mean wanted is over all labelled pixels.
        weight = self.world / num_labelled.clamp_min(1)
        total = torch.zeros((), device=self.device)
        for part, (image, label) in enumerate(micro):
            is_last = part + 1 == len(micro)
            sync = nullcontext() if is_last or self.world == 1 else self.wrapped.no_sync()  # type: ignore[operator]
            with sync:
                with self.amp:
                    logits = self.wrapped(self.lseg.normalize(image), text_KC)
                loss_sum, _ = segmentation_loss(logits, label, IGNORE)
                loss = loss_sum * weight
                loss.backward()
            total += loss.detach() / self.world
        # Gradients are all-reduced: every worker sees the same norm and decides alike.
        limit = self.train.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.lseg.parameters(), limit).item()  # host sync
        if np.isfinite(norm):
            self.optimizer.step()
            self.nonfinite = 0
        else:
            self.skip_step(step, norm)
        self.schedule.step()
        return total, norm

    def fetch(self, step: int, part: int, batches: Timed, lut: Tensor) -> tuple[Tensor, Tensor]:
        """The next micro-batch of this worker, on the device.

        Returns:
            image: (B, H, W, 3) uint8.
            label: (B, H, W) int64, positions in the step's labels, or IGNORE.
        """
        batch = next(batches)
        rows = self.config.rows_per_pass
        turn = part * self.world + self.rank
        expected = step * self.train.batch_size + turn * rows
        if int(batch["t"][0]) != expected:
            raise RuntimeError(
                f"worker {self.rank} got row {int(batch['t'][0])} of the stream at step {step}, "
                f"not {expected}: the ingest is out of order"
            )
        image, label = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])
        label = label.to(self.device, non_blocking=True).long()
        return image.to(self.device, non_blocking=True), lut[label]

    def skip_step(self, step: int, norm: float) -> None:
        """Leaves the weights as they are after a gradient that is not finite."""
        self.nonfinite += 1
        if self.rank == 0:
            logger.warning("step %d: the gradient norm is %s; step skipped", step + 1, norm)
        if self.nonfinite > self.train.max_nonfinite_steps:
            raise RuntimeError(
                f"{self.nonfinite} steps in a row without a finite gradient, more than "
                f"train.max_nonfinite_steps={self.train.max_nonfinite_steps}: lower train.lr or "
                "set train.clip_norm"
            )

    def log(
        self, done: int, loss: float, grad_norm: float, progress: Progress, batches: Timed
    ) -> dict[str, float]:
        """One line of log and one point in MLflow, on rank 0."""
        speed = progress.lap(done, batches)
        metrics = {
            "train/loss": loss,
            "train/lr": self.schedule.get_last_lr()[0],
            "train/grad_norm": grad_norm,
            "train/images_per_s": speed.images_per_s,
            "train/data_wait_share": speed.data_wait_share,
        }
        if self.tracker:
            self.tracker.log_metrics(metrics, done)
            logger.info("%s", progress.line(done, loss, speed))
        return metrics

    def validate(self, done: int) -> dict[str, float]:
        """Scores the validation split over all workers; the same figures on each."""
        if self.job.val is None:
            return {}
        result = validate(
            self.lseg, self.questions.text_KC, self.job.labels, self.job.val, self.config, self.amp
        )
        metrics = result.metrics()
        if self.tracker:
            self.tracker.log_metrics(metrics, done)
            self.tracker.log_text(result.table(), f"validation/step_{done:08d}.txt")
            logger.info("step %d  validation mIoU %.3f", done, metrics["val/miou"])
        return metrics

    def save(self, done: int, metrics: dict[str, float]) -> None:
        """Reports a checkpoint; every worker must come here at the same step."""
        report = {"step": done, **metrics}
        if self.rank != 0:
            ray.train.report(report, checkpoint_dir_name=checkpoint.name_of(done))
            return
        folder = Path(tempfile.mkdtemp(prefix="lseg-checkpoint-"))
        checkpoint.save(
            folder,
            self.lseg,
            self.optimizer,
            self.schedule,
            done,
            self.config,
            self.job.labels.names,
            report,
            self.job.tags | {"mlflow_run_id": (self.tracker and self.tracker.run_id) or ""},
        )
        ray.train.report(
            report,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=checkpoint.name_of(done),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )


def build_optimizer(lseg: LSeg, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over the published parameter groups."""
    groups = lseg.parameter_groups(train.lr)
    if train.optimizer == "adamw":
        # Adam's step does not depend on the size of a gradient: the groups need no factor.
        groups = [{**group, "lr": train.lr} for group in groups]
        return torch.optim.AdamW(groups, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, momentum=train.momentum, weight_decay=train.weight_decay)


def rate(step: int, config: TrainMixConfig) -> float:
    """Factor on the learning rates at a step: linear warm-up, then polynomial decay."""
    train = config.train
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return warm * (1 - min(step, train.steps) / train.steps) ** train.poly_power


def _every(done: int, interval: int) -> bool:
    return bool(interval) and done % interval == 0


def _autocast(precision: str, device: torch.device) -> Any:
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _log_to_driver() -> None:
    """Sends our own lines of log to stdout, which Ray passes on, and of Ray's only warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("pipeline")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.WARNING)
    # Batches arrive as read-only views into Ray's object store; nothing here writes into them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
