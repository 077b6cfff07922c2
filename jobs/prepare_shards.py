"""Converts official dataset downloads to WebDataset shards of one label space.

    python jobs/prepare_shards.py --roots.cityscapes DIR --roots.ade20k s3://raw/ade --out s3://lseg

An interrupted conversion goes on where it stopped when it is started again with the same arguments.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.data.prepare.config import PrepareConfig

if TYPE_CHECKING:
    from pipeline.data.prepare.run import PrepareSummary


def run(config: PrepareConfig) -> "PrepareSummary":
    """Converts, and prints what came of it."""
    from rich.console import Console

    from pipeline.data.prepare.run import prepare

    summary = prepare(config, start_ray)
    Console().print(summary.table())
    for made in summary.splits:
        for note in made.notes:
            print(f"{made.dataset}/{made.split}: {note}")
    print(
        f"{summary.images_converted:,} images converted in {summary.seconds:.1f} s; "
        f"shards are in {config.out}"
    )
    return summary


if __name__ == "__main__":
    sys.exit(main(PrepareConfig, run, description=__doc__))
