"""Segments images with any labels.

    python jobs/predict.py photo.jpg --labels "dog, grass, sky" --checkpoint DIR
    python jobs/predict.py s3://photos --labels_file words.txt --checkpoint models:/lseg@best

Writes NAME.png (positions in the list of labels, with a palette) and NAME.overlay.jpg for each
image. The same command resumes what an interrupted one has left undone.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.inference.config import PredictConfig

logger = logging.getLogger("jobs.predict")

BARE = {"images": {"nargs": "*"}}


def run(config: PredictConfig) -> None:
    """Segments the images and prints where the results lie."""
    from pipeline.inference.run import segment_photos
    from pipeline.progress import duration

    summary = segment_photos(config, start_ray)
    skipped = f", {summary.skipped} were there already" if summary.skipped else ""
    if summary.remark:
        logger.info("%s", summary.remark)
    done = f"{summary.done} segmented in {duration(summary.seconds)}{skipped}"
    print(f"{done}; results: {summary.folder}")


if __name__ == "__main__":
    sys.exit(main(PredictConfig, run, description=__doc__, bare=BARE))
