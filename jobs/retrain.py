"""Re-trains a model when its data changed, and promotes the result if it is better.

    python jobs/retrain.py --config RECIPE --data.shards DIR_OR_S3 --run.storage DIR_OR_S3
    python jobs/retrain.py --config RECIPE --run.storage DIR_OR_S3 --rollback

A scheduler may call it as often as it likes: without new shards it does nothing, and a call resumes
what a killed one has left undone. The locations are those of `jobs/train_mix.py`; the model in
service is the alias `champion` of `--registry.name`.

Exit codes: 0 done, whatever was decided, or nothing to do; 2 a mistake in settings or data; 69
MLflow does not answer: try again; 75 another call is at work (the message says which, since when,
until when); 130 and 143 stopped by Ctrl-C and SIGTERM, with a checkpoint.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.retraining.config import RetrainConfig

logger = logging.getLogger("jobs.retrain")


def run(config: RetrainConfig) -> None:
    """Does what there is to do and logs what it was."""
    from pipeline.retraining.launch import retrain

    logger.info("%s", retrain(config, start_ray).text)


if __name__ == "__main__":
    sys.exit(main(RetrainConfig, run, description=__doc__))
