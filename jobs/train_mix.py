"""Trains LSeg on a weighted mixture of datasets, with Ray Train.

    python jobs/train_mix.py --config jobs/recipes/demo.yaml --data.shards DIR_OR_S3
    python jobs/train_mix.py --config RECIPE --dry_run true
    python jobs/train_mix.py --config RECIPE --dry_run true --hardware.gpu H100 --hardware.nodes 2
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S":
        "120"}}' -- python jobs/train_mix.py --config RECIPE --run.name NAME

The same `run.name` with the same `run.storage` resumes, in the same MLflow run. Ctrl-C, SIGTERM and
`ray job stop` end a run after its current step, with a checkpoint (exit code 130 or 143).
"""

import logging
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.hardware import HardwareConfig

logger = logging.getLogger("jobs.train_mix")


@dataclass(frozen=True, kw_only=True)
class JobConfig(TrainMixConfig):
    """A training run, or a dry run of it."""

    dry_run: bool = False
    """Build everything, make one step without memory, weights or Ray, and print parameters, memory,
    images and an estimate of the time; train nothing."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Machines to plan for: a dry run then also prints images/s, and what is short first."""

    def __post_init__(self) -> None:
        is_planned = self.dry_run and self.hardware.gpu
        if self.hardware != HardwareConfig() and not is_planned:
            raise UserError(
                "hardware: plans without training: set hardware.gpu, and add --dry_run true"
            )
        if is_planned:  # A worker on each GPU, whatever the recipe has.
            num, given = self.hardware.num_workers, self.cluster
            cluster = replace(given, num_workers=num, min_workers=0, use_gpu=True)
            object.__setattr__(self, "cluster", cluster)
        try:
            super().__post_init__()
        except UserError as error:
            if not is_planned:
                raise
            raise UserError(
                f"hardware: {self.hardware.nodes} node(s) with {self.hardware.gpus_per_node} GPUs "
                f"have {self.hardware.num_workers} workers (cluster.num_workers): {error}"
            ) from error


def run(given: JobConfig) -> None:
    """Connects to Ray, trains, and logs where the result lies."""
    config = TrainMixConfig(**{f.name: getattr(given, f.name) for f in fields(TrainMixConfig)})
    if given.dry_run:
        from pipeline.storage.places import try_writable_place
        from pipeline.training.driver.capacity import plan_capacity
        from pipeline.training.driver.dry_run import dry_run
        from pipeline.training.plan import plan_if_possible

        try:
            try_writable_place("run.storage", config.run.storage)
        except UserError as error:  # It may be a place of other machines.
            logger.warning("a run on this machine would be refused: %s", error)
        plan = plan_if_possible(config)
        estimate = dry_run(config, plan)
        if given.hardware.gpu:
            manifests = plan.corpus.manifests if plan else None
            lines = plan_capacity(estimate, given.hardware, manifests).lines()
            print("\n".join([*estimate.facts(), *lines]))
        else:
            print("\n".join(estimate.lines()))
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
