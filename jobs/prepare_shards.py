"""Converts official dataset downloads to WebDataset shards of one label space.

    python jobs/prepare_shards.py --roots.cityscapes DIR --roots.ade20k s3://raw/ade --out s3://lseg

The same command resumes what an interrupted conversion has left undone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.data.prepare.config import PrepareConfig


def run(config: PrepareConfig) -> None:
    """Converts the datasets and prints a table of what was converted."""
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


if __name__ == "__main__":
    sys.exit(main(PrepareConfig, run, description=__doc__))
