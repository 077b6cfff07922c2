"""Trains LSeg on a weighted mixture of datasets, with Ray Train.

    python jobs/train_mix.py --config jobs/recipes/demo.yaml --data.shards DIR_OR_S3
    python jobs/train_mix.py --config RECIPE --dry_run true
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S":
        "300"}}' -- python jobs/train_mix.py --config RECIPE --run.name NAME

The same `run.name` with the same `run.storage` resumes; the same MLflow run goes on. Ctrl-C,
SIGTERM and `ray job stop` end a run after the step at hand, with a checkpoint (exit code 130 or
143).
"""

import logging
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.training.config import TrainMixConfig

if TYPE_CHECKING:
    from pipeline.training.driver.launch import Outcome

logger = logging.getLogger("jobs.train_mix")


@dataclass(frozen=True, kw_only=True)
class JobConfig(TrainMixConfig):
    """A training run, or a look at what it would be."""

    dry_run: bool = False
    """Build everything, make one step without memory, weights or Ray, and print parameters,
    memory, images and an estimate of the time."""


def run(given: JobConfig) -> "Outcome | None":
    """Connects to Ray, trains, and says where the result lies."""
    config = TrainMixConfig(**{f.name: getattr(given, f.name) for f in fields(TrainMixConfig)})
    if given.dry_run:
        from pipeline.training.driver.dry_run import dry_run
        from pipeline.training.plan import plan_if_possible

        print("\n".join(dry_run(config, plan_if_possible(config)).lines()))
        return None
    from pipeline.progress import duration
    from pipeline.training.driver.launch import plan_run, train

    outcome = train(plan_run(config), start_ray)
    logger.info("finished in %s: checkpoint %s", duration(outcome.seconds), outcome.checkpoint)
    for name, value in sorted(outcome.metrics.items()):
        if name.endswith("miou"):
            logger.info("%s %.3f", name, value)
    return outcome


if __name__ == "__main__":
    sys.exit(main(JobConfig, run, description=__doc__))
