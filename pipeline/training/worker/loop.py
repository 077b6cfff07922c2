"""The training loop of one worker, as Ray Train runs it on each.

One optimiser step: fetch the micro-batches, count the labelled pixels of the GLOBAL batch, forward
and backward with the loss divided by that count, all-rank finite check, clip, step, schedule. So N
workers make the same update as one worker with an N times larger batch. Now and then: log,
validate, copy the state for a checkpoint, which threads store. Host synchronisations go through
`Overhead.read`, which counts them by name: two in a step that does nothing else.

Exactness. The gradients of the accumulated passes sum to those of the whole batch, whatever the
number of passes and workers. Batch norm sees one pass of all workers at a time: `accumulate` > 1
gives it smaller batches, and so another (equally good) training of a network that has any.
"""

import functools
import logging
import math
from contextlib import ExitStack, nullcontext
from typing import Any

import ray.train
import torch
from torch import Tensor, nn
from torch import distributed as dist

from model.text import TextEncoder, build_text_encoder
from pipeline.data.ingest.stream import Timed, batches_of
from pipeline.tracking.tracker import Tracker
from pipeline.training.job import EarlyEnd, Job, open_tracker
from pipeline.training.saving import checkpoint
from pipeline.training.saving.saver import Saver
from pipeline.training.state.optimizer import rate
from pipeline.training.state.order import StreamOrder, wrapped
from pipeline.training.state.state import Statistics, TrainingState, build_state
from pipeline.training.stopping import StopListener
from pipeline.training.worker.bad_samples import BadSamples
from pipeline.training.worker.defects import ended_by
from pipeline.training.worker.device_batches import on_device
from pipeline.training.worker.diagnosis import diagnose
from pipeline.training.worker.label_budget import narrowed
from pipeline.training.worker.label_sets import label_sets_of
from pipeline.training.worker.micro_batches import BlockDealer
from pipeline.training.worker.overhead import Overhead
from pipeline.training.worker.preemption import PreemptionNotice
from pipeline.training.worker.process import MEMORY_EVERY, give_back_memory, prepare_process
from pipeline.training.worker.progress import SpeedMeter
from pipeline.training.worker.record import describe_run, show_validation, tell_validation
from pipeline.training.worker.regularizer_watch import RegularizerWatch
from pipeline.training.worker.step_text import StepText
from pipeline.training.worker.validation import validate
from pipeline.training.worker.watchdog import Watchdog
from pipeline.training.worker.wrapping import autocast, wrap

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> EarlyEnd:
    """Entry point of each training worker; `settings["job"]` is a `Job`."""
    job: Job = settings["job"]
    config, context = job.plan.config, ray.train.get_context()
    device = prepare_process(config, job.stop)
    encoder = build_text_encoder(config.model.text)
    latest = ray.train.get_checkpoint()
    state = build_state(config, encoder.dim, device, resumes=latest is not None)
    if latest:
        checkpoint.restore(latest, state, device)
    wrapped = wrap(state.lseg, config.train, device, context.get_world_size())
    with ExitStack() as stack:
        tracker = stop = None
        if context.get_world_rank() == 0:
            tags = job.run_tags(resumes=latest is not None)
            tracker = stack.enter_context(open_tracker(config, tags, job.lineage.parent_run_id))
            describe_run(tracker, job.plan, tags)
            stop = StopListener(job.stop) if job.stop else None
        loop = Loop(job, state, wrapped, encoder, device, tracker, stop)
        stack.enter_context(loop.watchdog)
        ended = loop.run()
        if tracker and ended.leaving:
            tracker.close("RUNNING")
        elif tracker and ended.why:
            tracker.log_text(ended.why, "ended_early.txt")
            tracker.close("KILLED" if ended.stopped else "FAILED")
    return ended


class Loop:
    """The state of a worker between two steps."""

    def __init__(
        self,
        job: Job,
        state: TrainingState,
        wrapped: nn.Module,
        encoder: TextEncoder,
        device: torch.device,
        tracker: Tracker | None,
        stop: StopListener | None,
    ) -> None:
        self.plan, self.config, self.train = job.plan, job.plan.config, job.plan.config.train
        self.state, self.lseg, self.wrapped = state, state.lseg, wrapped
        self.device, self.tracker, self.stop = device, tracker, stop
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.order = StreamOrder(job.plan.mixture, job.plan.corpus)
        self.questions = label_sets_of(self.plan, encoder, device)
        self.saver = Saver(job, state, self.rank, tracker)
        self.statistics, self.amp = Statistics(self.lseg), autocast(self.train.precision, device)
        self.text = StepText(self.config, self.lseg, self.questions, self.amp)
        self.watch = RegularizerWatch(self.lseg, tracker, self.train.log_every, self.amp)
        self.watchdog = Watchdog(self.config.run, self.config.cluster.watch_s, self.rank)
        self.nonfinite = self.skipped = 0  # Steps without finite gradients: in a row, in all.
        self.ended, self.chance_loss = EarlyEnd(), lambda: math.nan
        self.overhead, self.bad = Overhead(state.step), BadSamples(self.config.data.max_bad_share)
        self.notice = PreemptionNotice(self.config.cluster, self.rank, self.overhead)
        self.dealer = BlockDealer(
            self.config, self.order, state.step, self.rank, self.world, self.bad
        )

    def run(self) -> EarlyEnd:
        """Trains from the state's step to the end, or until there is a reason to stop."""
        shard = ray.train.get_dataset_shard("train")
        assert shard is not None
        batches = Timed(on_device(batches_of(shard, self.config.rows_per_pass), self.device))
        if self.rank == 0:
            logger.info("%d workers from step %d", self.world, self.state.step)
        metrics: dict[str, float] = {}
        # A run that was stopped just before a validation makes it first, with the same weights.
        if self.state.owes_validation:
            metrics, self.state.owes_validation = self.validate(), False
        progress = SpeedMeter(self.state.step, self.config, self.rank, self.world)
        while self.state.step < self.train.steps and self.ended == EarlyEnd():
            # The step comes first: all that follows looks at the weights that it left.
            loss, grad_norm, news = self.step(batches)
            self.watchdog.beat()
            if news:
                self.end_save()
            done, last = self.state.step, self.state.step == self.train.steps
            if last or _every(done, self.train.log_every):
                metrics = self.log(loss, grad_norm, progress, batches)
            if _every(done, MEMORY_EVERY):
                give_back_memory()
            validates = last or _every(done, self.train.validate_every)
            # Nobody has to leave after the last step, nor has a run that ends anyway.
            ends = last or self.ended != EarlyEnd()
            if not ends and (nodes := self.notice.nodes(done, look=validates)):
                self.ended = EarlyEnd(leaving=nodes)
            # Workers that are about to end have no minutes for a validation: the next ones make
            # it. The last one is part of the result: nothing resumes after its checkpoint.
            hurries = self.ended != EarlyEnd()
            self.state.owes_validation = validates and hurries
            if validates and not hurries:
                metrics |= self.validate()
                progress.skip()
            leaves, required = bool(self.ended.leaving), last or bool(self.ended.stopped)
            # The checkpoint comes last, so that it holds the metrics and what is still pending.
            # Weights that give no finite gradient must not push out the last good checkpoint,
            # but for the one that the end of a run promises.
            due = (leaves or _every(done, self.train.checkpoint_every)) and not self.nonfinite
            if (required or due) and not (self.ended.failed or self.ended.defect):
                with self.overhead.spent("train/checkpoint_s"):
                    self.saver.save(metrics, required=required, bypass_backlog=leaves)
        self.watchdog.close()
        self.end_save()
        self.saver.wait()
        return self.ended

    def end_save(self) -> None:
        """Reports what was written, or ends the run by what kept it from that, on all workers."""
        with self.overhead.spent("train/checkpoint_s"):
            self.saver.report()
            self.ended = ended_by(self.saver.defect, self.device, self.overhead.read) or self.ended

    def step(self, batches: Timed) -> tuple[Tensor, float, int]:
        """One optimiser step.

        Returns:
            loss: 0-d, this worker's part of the mean loss over the global batch.
            grad_norm: Norm of the gradients before clipping.
            news: Not 0 if a checkpoint was written, or could not be.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        self.statistics.keep()  # Before any forward pass, in case the step has to be skipped.
        # All micro-batches are fetched before the first pass: the loss is divided by the labelled
        # pixels of the whole global batch, which one all-reduce counts over all workers.
        rows = self.order.rows(self.state.step)
        asked = self.questions.at(self.state.step, rows)
        parts = range(self.train.accumulate)
        micro = [self.dealer.take(self.state.step, part, batches, asked) for part in parts]
        question, micro = narrowed(self.config, asked, micro, self.state.step)
        self.chance_loss = functools.partial(question.chance_loss, [row.dataset for row in rows])
        counted = torch.stack([question.num_counted(each.label) for each in micro]).sum()
        summed = self.sync_step(counted, sum(each.digest for each in micro))
        # The watch measures the weights before the step, as its first figure is of step 0.
        text_KC = self.text.of(question)
        self.watch.look(self.state.step, micro[0].image, text_KC.detach())
        # DDP averages gradients over workers; the mean wanted is over all labelled pixels.
        weight = self.world / summed[0].clamp_min(1)
        total = torch.zeros((), device=self.device)
        for part, (image, label, dataset, _) in enumerate(micro):
            is_last = part + 1 == len(micro)
            sync = nullcontext() if is_last or self.world == 1 else self.wrapped.no_sync()  # type: ignore[operator]
            with sync:
                with self.amp:
                    logits = self.wrapped(self.lseg.normalize(image), text_KC)
                loss = question.loss_sum(logits, label, dataset) * weight
                loss.backward()
            total += loss.detach() / self.world
        self.text.backward()
        # Gradients are all-reduced: every worker sees the same norm and decides alike.
        norm = nn.utils.clip_grad_norm_(self.lseg.parameters(), self.train.clip_norm or math.inf)
        norm = self.overhead.read("gradient norm", norm)
        if math.isfinite(norm):
            self.state.optimizer.step()
            self.nonfinite = 0
            if self.state.average:
                self.state.average.update_parameters(self.lseg)
        else:
            self.skip_step(norm, total)
        # A skipped step counts too: schedule and stream stay functions of the step alone.
        self.state.schedule.step()
        self.state.step += 1
        # All came with the all-reduce above, so every worker ends or reports after the same step.
        _, stop, digest, news = self.overhead.read("sums of the step", summed)
        self.state.order.append(digest)
        if stop and self.state.step < self.train.steps and not self.ended.failed:
            self.ended = EarlyEnd(stopped=f"asked to stop, after step {self.state.step}")
        return total, norm, news

    def sync_step(self, counted: Tensor, digest: int) -> Tensor:
        """Sums over all workers what they must know of a step, in one call.

        Returns:
            (4,) int64: labelled pixels and digest of the global batch at 0 and 2; at 1 and 3 not 0
            if the run was asked to stop, and if a checkpoint was written or could not be.
        """
        asked = bool(self.stop and self.stop.reason)
        mine = torch.tensor([0, asked, wrapped(digest), self.saver.news], dtype=torch.int64)
        mine = mine.to(self.device, non_blocking=True)
        mine[0] = counted
        dist.all_reduce(mine)
        return mine

    def skip_step(self, norm: float, loss: Tensor) -> None:
        """Leaves the weights and the statistics as they are after a gradient of NaN or infinity."""
        self.nonfinite += 1
        self.skipped += 1
        self.statistics.put_back()
        step = self.state.step + 1
        if self.rank == 0:
            logger.warning("step %d: the gradient norm is %s; step skipped", step, norm)
        if self.nonfinite > self.train.max_nonfinite_steps:
            whole = loss.clone()
            dist.all_reduce(whole)
            found = self.overhead.read("loss", whole), norm, self.nonfinite
            self.ended = EarlyEnd(failed=diagnose(self.state, self.config, self.order, *found))

    def log(
        self, part: Tensor, grad_norm: float, progress: SpeedMeter, batches: Timed
    ) -> dict[str, float]:
        """One line of log and one point in MLflow, on rank 0; `part` is this worker's loss."""
        dist.all_reduce(part)
        done, loss = self.state.step, self.overhead.read("loss", part)
        speed = progress.lap(done, batches)
        num_bad, problem = self.bad.totals(self.device, self.overhead.read)
        if problem:
            self.ended = EarlyEnd(failed=problem)
        metrics = {
            "train/loss": loss,
            "train/chance_loss": self.chance_loss(),
            "train/lr": self.train.lr * rate(done, self.train),
            "train/grad_norm": grad_norm,
            "train/images_per_s": speed.images_per_s,
            "train/data_wait_share": speed.data_wait_share,
            "train/bad_samples": num_bad,
            "train/skipped_steps": self.skipped,
            **self.overhead.metrics(done),
        }
        if self.tracker:
            self.tracker.log_metrics(metrics, done)
            logger.info("%s", progress.line(done, loss, speed))
        return metrics

    def validate(self) -> dict[str, float]:
        """Scores the validation split over all workers; the same figures on each."""
        if self.plan.validation is None:
            return {}
        # A validation takes minutes, in which the checkpoint before it can be stored.
        self.saver.report(f"step {self.state.step}: the validation")
        with self.overhead.spent("train/validation_s"):
            given = self.text, self.questions, self.plan, self.amp, self.watchdog.beat
            result = validate(self.state.evaluated, *given)
        metrics, done = result.metrics(), self.state.step
        if self.tracker:
            tell_validation(self.tracker, result, metrics, done)
            with self.overhead.spent("train/pictures_s"):
                show_validation(self.tracker, result, done)
        self.saver.keep_best(metrics)
        return metrics


def _every(done: int, interval: int) -> bool:
    return bool(interval) and done % interval == 0
