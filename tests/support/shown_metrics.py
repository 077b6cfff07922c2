"""What a process without Ray would show to Prometheus if it had one."""

from typing import Any

import pytest

from pipeline import monitoring
from pipeline.monitoring import Metric


class Shown:
    """The last values of gauges, and the sums of counters, by name and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def of(self, **labels: str) -> dict[str, float]:
        """What was set with exactly these labels, by name."""
        wanted = frozenset(labels.items())
        return {name: value for (name, found), value in self.values.items() if found == wanted}


class _Recorded:
    """Takes the place of Ray's metric."""

    def __init__(self, metric: Metric, shown: Shown) -> None:
        self._metric, self._values = metric, shown.values

    def _key(self, labels: dict[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
        assert set(labels) == set(self._metric.labels)
        assert all(isinstance(value, str) for value in labels.values())
        return self._metric.name, frozenset(labels.items())

    def set(self, value: float, labels: dict[str, str]) -> None:
        self._values[self._key(labels)] = value

    def inc(self, value: float, labels: dict[str, str]) -> None:
        self._values[self._key(labels)] = self._values.get(self._key(labels), 0.0) + value

    def _record(self, value: float, labels: dict[str, str]) -> None:
        self._values.setdefault(self._key(labels), value)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Records every metric of this process."""
    found = Shown()

    def recorded(self: Metric) -> Any:
        return _Recorded(self, found)

    monkeypatch.setattr(monitoring.Metric, "_ray", recorded)
    return found
