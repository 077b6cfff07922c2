"""What a worker does besides its steps: how long that takes, and how often it waits for its device.

A GPU works through what was queued for it. Each value that the host asks for (a host
synchronisation) lets that queue run empty, so that the device idles until the next kernels come.
The loop reads such values through `Overhead` alone, which counts them by name.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Overhead:
    """Seconds by metric and host synchronisations by name, since they were last asked for."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.seconds: dict[str, float] = defaultdict(float)
        self.syncs: Counter[str] = Counter()

    @contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a metric."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def read(self, name: str, value: Tensor) -> Any:
        """Brings a tensor to the host as a number or a list of them: a host synchronisation."""
        self.syncs[name] += 1
        return value.tolist()

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the seconds of each metric and `train/host_syncs` a step; starts anew."""
        found = dict(self.seconds)
        found["train/host_syncs"] = self.syncs.total() / max(step - self._step, 1)
        self._step = step
        self.seconds.clear()
        self.syncs.clear()
        return found
