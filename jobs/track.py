"""Sends tracking records that MLflow did not take during training.

python jobs/track.py --replay runs/mix7/tracking.jsonl [--tracking.uri http://mlflow:5000]
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from jobs.cli import main
from pipeline.errors import UserError
from pipeline.training.replay import replay
from pipeline.training.tracking_config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replays a spill file."""

    replay: Path
    """The file that training named in its last lines."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where to; `uri` empty: MLFLOW_TRACKING_URI. The experiment is the one in the file."""


def replay_job(config: ReplayConfig) -> None:
    """Sends the file and says what became of it."""
    if not config.replay.is_file():
        raise UserError(
            f"replay={config.replay}: must be a spill file: give the path that training printed; "
            "a file that was sent completely is removed"
        )
    counts = replay(config.replay, config.tracking)
    print(f"sent {counts.sent} records ({counts.metrics} metric values)")
    for name, hint in counts.runs.items():
        print(f"  {name}: {hint}")
    if counts.refused:
        refused = config.replay.with_suffix(".refused.jsonl")
        print(f"refused {counts.refused} records, kept in {refused}")
    if counts.left:
        raise UserError(
            f"replay={config.replay}: {counts.left} records are still in the file, because MLflow "
            f"must answer and does not ({counts.reason}): repeat when it does"
        )


if __name__ == "__main__":
    sys.exit(main(ReplayConfig, replay_job, description=__doc__))
