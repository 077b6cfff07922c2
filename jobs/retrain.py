"""What a scheduler calls: re-trains a model when its data changed, promotes it if it is better.

    python jobs/retrain.py --config RECIPE --data.shards DIR_OR_S3 --run.storage DIR_OR_S3
    python jobs/retrain.py --config RECIPE --run.storage DIR_OR_S3 --rollback

Call it as often as you like: without new shards it does nothing; killed, the next call goes on. The
places are those of `jobs/train_mix.py`; the model in service is the alias `champion` of
`--registry.name`.

Exit codes: 0 done, whatever was decided, or nothing to do; 2 a mistake in settings or data; 69
MLflow does not answer: try again; 75 another call is at it (the message says who, since when, until
when); 130 and 143 stopped by Ctrl-C and SIGTERM, with a checkpoint.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.retraining.config import RetrainConfig

if TYPE_CHECKING:
    from pipeline.retraining.runner import Result

logger = logging.getLogger("jobs.retrain")


def run(config: RetrainConfig) -> "Result":
    """Does what there is to do, and says what it was."""
    from pipeline.retraining.launch import retrain

    result = retrain(config, start_ray)
    logger.info("%s", result.text)
    return result


if __name__ == "__main__":
    sys.exit(main(RetrainConfig, run, description=__doc__))
