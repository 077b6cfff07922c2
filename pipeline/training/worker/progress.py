"""The speed of a run: its progress line in the log, and what Prometheus sees of it."""

import time
from dataclasses import dataclass

from pipeline import monitoring
from pipeline.data.ingest.stream import Timed
from pipeline.progress import duration
from pipeline.training.config import TrainMixConfig


@dataclass(frozen=True)
class Speed:
    """The speed over one stretch of training."""

    images_per_s: float
    """Images of all workers per second."""
    data_wait_share: float
    """Share of the time that this worker waited for data, 0..1."""
    eta_s: float
    """Seconds until the last step at this speed."""


class SpeedMeter:
    """Measures the speed between two lines of log; a batch is that of all workers.

    Args:
        step: Steps done.
        config: The run.
        rank: Number of the worker; 0 publishes what is of all workers.
        world: Number of workers.
    """

    def __init__(self, step: int, config: TrainMixConfig, rank: int, world: int) -> None:
        self._step, self._total = step, config.train.steps
        self._batch_size, self._every = config.train.batch_size, config.train.checkpoint_every
        self._run, self._rank = config.run.name, rank
        self._since = time.perf_counter()
        if rank == 0:
            monitoring.IMAGES.start(run=self._run)
            monitoring.WORKERS.set(world, run=self._run)
            monitoring.STEPS_PLANNED.set(self._total, run=self._run)
            monitoring.STEP.set(step, run=self._run)

    def skip(self) -> None:
        """Leaves the time since the last line out (a validation, say)."""
        self._since = time.perf_counter()

    def lap(self, step: int, batches: Timed) -> Speed:
        """Speed since the last lap; starts a new one."""
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        per_step = elapsed / max(step - self._step, 1)
        speed = Speed(
            self._batch_size / per_step,
            min(1.0, batches.waited_s / elapsed),
            per_step * (self._total - step),
        )
        self._publish(step, speed, per_step)
        self._step, self._since, batches.waited_s = step, now, 0.0
        return speed

    def _publish(self, step: int, speed: Speed, per_step_s: float) -> None:
        run, worker = self._run, str(self._rank)
        monitoring.DATA_WAIT.set(speed.data_wait_share, run=run, worker=worker)
        if self._rank == 0:
            monitoring.IMAGES.add((step - self._step) * self._batch_size, run=run)
            monitoring.IMAGES_PER_SECOND.set(speed.images_per_s, run=run)
            monitoring.STEP.set(step, run=run)
            monitoring.CHECKPOINT_INTERVAL.set(self._every * per_step_s, run=run)

    def line(self, step: int, loss: float, speed: Speed) -> str:
        """The line of log for a person."""
        return (
            f"step {step}/{self._total}  loss {loss:.4f}  {speed.images_per_s:.1f} images/s  "
            f"data wait {speed.data_wait_share:.0%}  ETA {duration(speed.eta_s)}"
        )
