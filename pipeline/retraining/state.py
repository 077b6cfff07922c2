"""One attempt at a better model, stored after each of its phases, so that the next call continues.

    RUN_STORAGE/retrain/REGISTRY_NAME/state.json          the attempt at hand, or the last one
    RUN_STORAGE/retrain/REGISTRY_NAME/decisions/*.json    one for each that ended, and rollbacks
    RUN_STORAGE/retrain/REGISTRY_NAME/{retrain,champion}.lock

Every file is replaced whole.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, get_args

from pipeline.errors import UserError
from pipeline.storage.base import Storage

Phase = Literal["planned", "trained", "registered", "evaluated", "decided", "promoted", "finished"]
PHASES: tuple[Phase, ...] = get_args(Phase)

FORMAT = 2
_READ = (1, 2)
STATE = "state.json"
DECISIONS = "decisions"


@dataclass(frozen=True)
class Attempt:
    """All that is known of one attempt."""

    id: str
    """16 hex digits, over the data, the champion and which try it is."""
    run_name: str
    """Name of the training run; a restarted one resumes under it."""
    training: dict[str, str]
    """Fingerprints; see `DataState`."""
    validation: dict[str, str]
    why: tuple[str, ...]
    """Why there is something to train."""
    start: str
    """`warm` or `fresh`."""
    start_from: str
    """Checkpoint that a warm start takes its weights from."""
    champion: str
    """Version that the candidate is compared with; empty where there is none."""
    began: str
    """Local time."""
    phase: Phase = "planned"
    checkpoint: str = ""
    """What the training made."""
    run_id: str = ""
    """MLflow run of the training."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The training's own, of its last step."""
    candidate: str = ""
    """Version in the registry."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figures of each version that is evaluated already."""
    compared_by: str = ""
    """Digest of the settings that `figures` were made with; empty in files of format 1."""
    decision: dict[str, Any] = field(default_factory=dict)
    """See `Decision`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", tuple(self.why))
        if self.phase not in PHASES:
            raise ValueError(f"phase {self.phase!r}: must be one of {', '.join(PHASES)}")


class StateFile:
    """The attempt at hand, in the run storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self) -> Attempt | None:
        """The attempt at hand or the last one; None before the first.

        Raises:
            UserError: The file is damaged, or of another version of this program.
        """
        try:
            values = json.loads(self._storage.read(STATE))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            values = {}
        try:
            if values["format"] not in _READ:
                raise ValueError(f"format {values['format']!r}, this program writes {FORMAT}")
            attempt = values["attempt"] | ({"compared_by": ""} if values["format"] == 1 else {})
            return Attempt(**{f.name: attempt[f.name] for f in fields(Attempt)})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{self._storage.uri}/{STATE}: is damaged ({type(error).__name__}: {error}): "
                "delete it; the champion stays, and the next call plans anew"
            ) from None

    def write(self, attempt: Attempt) -> None:
        """Replaces what is stored."""
        content = {"format": FORMAT, "written": now(), "attempt": asdict(attempt)}
        self._storage.write(STATE, (json.dumps(content, indent=1) + "\n").encode())


def now() -> str:
    """The local time, as it is stored and shown; of two moments the later one sorts later."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="milliseconds")
