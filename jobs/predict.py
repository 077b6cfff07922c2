"""Segments pictures with any labels.

    python jobs/predict.py photo.jpg --labels "dog, grass, sky" --checkpoint DIR
    python jobs/predict.py s3://photos/2024 --labels_file words.txt --other other \
        --checkpoint models:/lseg@best --out s3://results/2024

Writes NAME.png (positions in the list of labels, with a palette) and NAME.overlay.jpg for each
picture. Started again with the same arguments it goes on where it stopped.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.inference.config import PredictConfig

if TYPE_CHECKING:
    from pipeline.inference.run import Summary

logger = logging.getLogger("jobs.predict")

BARE = {"images": {"nargs": "*"}}


def run(config: PredictConfig) -> "Summary":
    """Segments, and says where the results lie."""
    from pipeline.inference.run import segment_photos
    from pipeline.progress import duration

    summary = segment_photos(config, start_ray)
    skipped = f", {summary.skipped} were there already" if summary.skipped else ""
    print(
        f"{summary.done} segmented in {duration(summary.seconds)}{skipped}; results: {config.out}"
    )
    return summary


if __name__ == "__main__":
    sys.exit(main(PredictConfig, run, description=__doc__, bare=BARE))
