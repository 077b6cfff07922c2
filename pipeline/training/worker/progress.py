"""The speed of a run, and its progress line in the log."""

import time
from dataclasses import dataclass

from pipeline.data.ingest.stream import Timed
from pipeline.progress import duration


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
    """Measures the speed between two lines of log; a batch is that of all workers."""

    def __init__(self, step: int, total: int, batch_size: int) -> None:
        self._step, self._total, self._batch_size = step, total, batch_size
        self._since = time.perf_counter()

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
        self._step, self._since, batches.waited_s = step, now, 0.0
        return speed

    def line(self, step: int, loss: float, speed: Speed) -> str:
        """The line of log for a person."""
        return (
            f"step {step}/{self._total}  loss {loss:.4f}  {speed.images_per_s:.1f} images/s  "
            f"data wait {speed.data_wait_share:.0%}  ETA {duration(speed.eta_s)}"
        )
