"""Checks a cluster before its first training: GPUs, exchange, storage, MLflow, weights, clocks.

    python jobs/check_cluster.py --config RECIPE --data.shards s3://shards --run.storage s3://runs
    ray job submit --working-dir . -- python jobs/check_cluster.py --config RECIPE --json

The settings are those of the training: a probe takes the place of each of its workers. Exit code 0:
a training would run; 1: a check failed; 2: the command itself is wrong.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig


@dataclass(frozen=True, kw_only=True)
class CheckConfig(TrainMixConfig):
    """The training that the cluster is for, and how it is tried."""

    json: bool = False
    """Print the findings as one JSON document instead of a table."""
    exchange_mib: int = 64
    """Size of the tensor that the workers sum, in MiB."""
    read_s: float = 5.0
    """Seconds for which all workers read shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exchange_mib < 1:
            raise UserError(f"exchange_mib={self.exchange_mib}: must be at least 1: 64 will do")
        if not 0 < self.read_s <= 60:
            raise UserError(f"read_s={self.read_s}: must be above 0 and at most 60: 5 will do")


def run(config: CheckConfig) -> int:
    """Checks, prints what was found, and returns the number of checks that failed."""
    from pipeline.preflight.run import check_cluster

    plain = TrainMixConfig(**{f.name: getattr(config, f.name) for f in fields(TrainMixConfig)})
    report = check_cluster(plain, start_ray, config.exchange_mib, config.read_s)
    print(report.to_json() if config.json else "\n".join(report.lines()))
    return report.num_failed


def command() -> int:
    """Runs the job; its exit code is 1 when a check failed."""
    failed = []
    return main(CheckConfig, lambda config: failed.append(run(config)), None, __doc__) or any(
        failed
    )


if __name__ == "__main__":
    sys.exit(command())
