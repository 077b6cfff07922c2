"""What each trial came to, as a small file of its own: a sweep that is started again reads it."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.storage.base import Storage

Status = Literal["running", "finished", "failed", "stopped"]

FOLDER = "results"


@dataclass(frozen=True)
class Result:
    """One trial, ended."""

    name: str
    params: dict[str, Any]
    seed: int
    status: Status
    """`stopped`: early, for being behind others. One that is `running` may have been killed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last report."""
    checkpoint: str = ""
    seconds: float = 0.0
    error: str = ""
    """Why it failed, in a line."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What it was trained and scored with, of `settings_of`; empty where that is not known."""

    @property
    def is_done(self) -> bool:
        """Whether the trial need not run again."""
        return self.status in ("finished", "stopped")

    def value(self, metric: str) -> float:
        """A metric; NaN where it has none."""
        return float(self.metrics.get(metric, math.nan))


def write(storage: Storage, result: Result) -> None:
    """Writes the file of a trial."""
    text = json.dumps(asdict(result), indent=1, default=str) + "\n"
    storage.write(f"{FOLDER}/{result.name}.json", text.encode())


def read(storage: Storage, name: str) -> Result | None:
    """The result of a trial; None where it has none yet, or a torn or damaged one."""
    try:
        result = Result(**json.loads(storage.read(f"{FOLDER}/{name}.json")))
        return result if _is_whole(result) else None
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None


def _is_whole(result: Result) -> bool:
    """Whether the fields that others compute with hold what they must."""
    texts = (result.name, result.status, result.checkpoint, result.error)
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(result.params, dict)
        and isinstance(result.settings, dict)
        and isinstance(result.metrics, dict)
        and all(_is_number(value) for value in (*result.metrics.values(), result.seconds))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_all(storage: Storage) -> dict[str, Result]:
    """All results, by name of the trial."""
    names = [entry.path for entry in storage.list(FOLDER) if entry.path.endswith(".json")]
    found = [read(storage, name.rsplit("/", 1)[-1].removesuffix(".json")) for name in names]
    return {result.name: result for result in found if result is not None}
