"""What a process of the service has done: for `/metrics`, and under Ray for Ray's metrics."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline import monitoring

COUNTERS = {
    "calls": monitoring.SERVED_CALLS,
    "images": monitoring.SERVED_IMAGES,
    "batches": monitoring.SERVED_BATCHES,
    "busy_seconds": monitoring.SERVED_SECONDS,
    "champion_failures": monitoring.SERVED_MODEL_FAILURES,
}
"""What is counted: calls by status, images and batches that went through the network and the
seconds that it was at work, and looks at the alias that failed."""


class Tally:
    """Counts, each by at most one label."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._changes = -1

    def add(self, name: str, value: float = 1.0, status: str = "") -> None:
        """Adds to a counter of `COUNTERS`."""
        counter = COUNTERS[name]
        with self._lock:
            self._counts[counter.name, status] += value  # type: ignore[assignment]
        counter.add(value, **({"status": status} if status else {}))

    def model(self) -> None:
        """Says that a model answers from now on, the first one or another."""
        with self._lock:
            self._changes += 1
            is_change = self._changes > 0
        if is_change:
            monitoring.SERVED_MODEL_CHANGES.add()
            return
        # A process that has a model shows what it counts from 0 on: of a series that begins with
        # its first failure Prometheus sees no increase.
        for counter in (monitoring.SERVED_MODEL_CHANGES, *COUNTERS.values()):
            if not counter.labels:
                counter.start()
        self.behind(False)

    def behind(self, is_behind: bool) -> None:
        """Says whether the alias leads elsewhere than to the model that answers."""
        monitoring.SERVED_MODEL_BEHIND.set(float(is_behind))

    def text(self, about: Mapping[str, Any] | None) -> str:
        """All of it, with what is known of the model.

        Args:
            about: Which model answers, how many calls wait and whether the alias leads elsewhere;
                None: nothing answers.
        """
        with self._lock:
            lines = [
                f"{name}{f'{{status={status!r}}}' if status else ''} {value:g}".replace("'", '"')
                for (name, status), value in sorted(self._counts.items())
            ]
            lines.append(f"{monitoring.SERVED_MODEL_CHANGES.name} {max(0, self._changes)}")
        if about is not None:
            model = str(about["model"]).replace("\\", "").replace('"', "")
            lines.append(f"{monitoring.SERVED_MODEL_BEHIND.name} {int(about['is_behind'])}")
            lines.append(f"lseg_serve_waiting {about['waiting']}")
            lines.append(f'lseg_serve_model_info{{model="{model}"}} 1')
        return "\n".join(lines) + "\n"


TALLY = Tally()
"""The counts of this process."""
