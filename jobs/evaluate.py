"""Scores a checkpoint by a published protocol, on all the workers that Ray has room for.

    python jobs/evaluate.py --checkpoint DIR_OR_URI --protocol unified --shards DIR_OR_S3
    python jobs/evaluate.py --checkpoint models:/lseg@best --protocol ade20k-150 --roots.ade20k DIR

The same command resumes what a killed one has left undone. The report lies in `--out`, its figures
in the MLflow run that made the checkpoint.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.evaluation.config import EvaluateConfig

logger = logging.getLogger("jobs.evaluate")


def run(config: EvaluateConfig) -> None:
    """Evaluates the checkpoint and logs where the report lies."""
    from pipeline.evaluation.launch import evaluate
    from pipeline.progress import duration

    outcome = evaluate(config, start_ray)
    logger.info("finished in %s: %s/report.json", duration(outcome.seconds), outcome.folder)
    logger.info("%s", outcome.ui_hint)


if __name__ == "__main__":
    sys.exit(main(EvaluateConfig, run, description=__doc__))
