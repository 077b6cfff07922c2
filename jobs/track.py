"""Sends tracking records that MLflow did not take during training.

python jobs/track.py --replay runs/mix7/tracking-mix7.jsonl [--tracking.uri http://mlflow:5000]
python jobs/track.py --replay s3://runs    # all that the runs in this storage have left
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.errors import UserError
from pipeline.tracking.config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Which journals to send, and where to."""

    replay: str
    """The file that training named in its last lines, or a folder that holds some: a run's, or the
    storage of many; local or `s3://`."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where to; `uri` empty: MLFLOW_TRACKING_URI. The experiment is the one in the file."""


def replay_job(config: ReplayConfig) -> None:
    """Sends the files and says what became of them."""
    from pipeline.tracking.replay import replay_all

    left, waiting_helps = [], True
    for place, counts in replay_all(config.replay, config.tracking):
        print(f"{place}: sent {counts.sent} records ({counts.metrics} metric values)")
        for name, hint in counts.runs.items():
            print(f"  {name}: {hint}")
        if counts.refused:
            refused = f"{place.removesuffix('.jsonl')}.refused.jsonl"
            print(f"refused {counts.refused} records, kept in {refused}")
        if counts.left and counts.refusal:
            waiting_helps = False
            left.append(f"{counts.left} records are still in the file {place} ({counts.reason})")
        elif counts.left:
            left.append(
                f"{counts.left} records are still in the file {place}, because MLflow must answer "
                f"and does not ({counts.reason})"
            )
    if left:
        then = "repeat when it does" if waiting_helps else "mend that, then repeat this"
        raise UserError(f"replay={config.replay}: {'; '.join(left)}: {then}")


if __name__ == "__main__":
    sys.exit(main(ReplayConfig, replay_job, description=__doc__))
