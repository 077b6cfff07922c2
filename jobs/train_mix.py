"""Trains LSeg on a weighted mixture of datasets, with Ray Train.

    python jobs/train_mix.py --config jobs/recipes/demo.yaml --data.shards DIR_OR_S3
    python jobs/train_mix.py --config RECIPE --dry_run true
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S":
        "300"}}' -- python jobs/train_mix.py --config RECIPE --run.name NAME

The same `run.name` with the same `run.storage` resumes, in the same MLflow run. Ctrl-C, SIGTERM and
`ray job stop` end a run after its current step, with a checkpoint (exit code 130 or 143).
"""

import logging
import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.training.config import TrainMixConfig

logger = logging.getLogger("jobs.train_mix")


@dataclass(frozen=True, kw_only=True)
class JobConfig(TrainMixConfig):
    """A training run, or a dry run of it."""

    dry_run: bool = False
    """Build everything, make one step without memory, weights or Ray, and print parameters, memory,
    images and an estimate of the time; train nothing."""


def run(given: JobConfig) -> None:
    """Connects to Ray, trains, and logs where the result lies."""
    config = TrainMixConfig(**{f.name: getattr(given, f.name) for f in fields(TrainMixConfig)})
    if given.dry_run:
        from pipeline.training.driver.dry_run import dry_run
        from pipeline.training.plan import plan_if_possible

        print("\n".join(dry_run(config, plan_if_possible(config)).lines()))
        return
    from pipeline.progress import duration
    from pipeline.training.driver.launch import plan_run, train

    outcome = train(plan_run(config), start_ray)
    logger.info("finished in %s: checkpoint %s", duration(outcome.seconds), outcome.checkpoint)
    for name, value in sorted(outcome.metrics.items()):
        if name.endswith("miou"):
            logger.info("%s %.3f", name, value)


if __name__ == "__main__":
    sys.exit(main(JobConfig, run, description=__doc__))
