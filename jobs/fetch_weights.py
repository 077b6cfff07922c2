"""Fetches the published weights that a recipe names, once, for clusters without the hub.

    python jobs/fetch_weights.py --config jobs/recipes/mix7_vitl16.yaml --to s3://shards/weights
    python jobs/fetch_weights.py --config jobs/recipes/mix7_vitl16.yaml --to /mnt/weights

Jobs use them where LSEG_WEIGHTS names the place, in the environment of the nodes: each node copies
those of S3 once (to LSEG_WEIGHTS_CACHE_DIR), and the hub is not asked. A place may hold the weights
of several recipes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig


@dataclass(frozen=True, kw_only=True)
class FetchConfig(TrainMixConfig):
    """A recipe, of which the model counts, and where its weights go."""

    to: str = ""
    """Folder that all nodes share, or `s3://bucket/prefix`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.to:
            raise UserError("to='': must be a folder, or s3://bucket/prefix: add --to")


def run(config: FetchConfig) -> None:
    """Fetches, and prints what the place holds."""
    from pipeline.checkpoints.prefetched import fetch
    from pipeline.storage.places import resolve_location, try_writable_place

    place = resolve_location("to", config.to)
    try_writable_place("to", place)
    for line in fetch(config.model, place):
        print(line)
    print(f"in the environment of the nodes: LSEG_WEIGHTS={place}")


if __name__ == "__main__":
    sys.exit(main(FetchConfig, run, description=__doc__))
