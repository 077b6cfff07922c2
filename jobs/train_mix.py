"""Trains LSeg on a weighted mixture of datasets, with Ray Train.

    python jobs/train_mix.py --config jobs/recipes/demo.yaml --data.shards DIR_OR_S3
    ray job submit --working-dir . -- python jobs/train_mix.py --config RECIPE --run.name NAME

The same `run.name` with the same `run.storage` resumes; the same MLflow run goes on.
"""

import logging
import sys

from jobs.cli import main, start_ray
from pipeline.training.config import TrainMixConfig
from pipeline.training.launch import Outcome, absolute, train
from pipeline.training.progress import duration

logger = logging.getLogger("jobs.train_mix")


def run(config: TrainMixConfig) -> Outcome:
    """Connects to Ray, trains, and says where the result lies."""
    config = absolute(config)
    start_ray(config.logical_cpus)
    outcome = train(config)
    logger.info("finished in %s: checkpoint %s", duration(outcome.seconds), outcome.checkpoint)
    for name, value in sorted(outcome.metrics.items()):
        if name.endswith("miou"):
            logger.info("%s %.3f", name, value)
    return outcome


if __name__ == "__main__":
    sys.exit(main(TrainMixConfig, run, description=__doc__))
