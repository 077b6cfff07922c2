"""Runs an ablation sweep on one machine in minutes: `make sweep-demo`.

Renders a small mini-seven, converts it, and trains a tiny LSeg with regularisers of several depths
and initialisations, two trials at a time. Ends with the comparison, which shows the published
initialisation with a negative bias collapse at depth 4, and the identity train at every depth.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import sweep
from jobs.cli import main, parse, start_ray
from jobs.demo import convert, render
from pipeline.errors import UserError
from pipeline.sweep.config import SweepConfig

SWEEP = Path(__file__).parent / "sweeps" / "demo.yaml"


@dataclass(frozen=True, kw_only=True)
class SweepDemoConfig:
    """What the sweep demo renders and runs."""

    out: str = "runs/sweep-demo"
    """Folder for everything that the demo makes."""
    seed: int = 0
    """Seed of the scenes and the trainings."""
    sweep: str = str(SWEEP)
    """The sweep's file."""
    train_scenes: int = 40
    """Training scenes of each dataset."""
    val_scenes: int = 10
    """Validation scenes of each dataset."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("train_scenes", 2), ("val_scenes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")


def run(config: SweepDemoConfig) -> None:
    """Renders and converts the data, then runs the sweep as `jobs/sweep.py` does."""
    from pipeline.storage.places import ensure_writable_dir

    out = Path(config.out).resolve() / f"seed-{config.seed}"
    ensure_writable_dir("out", config.out, out)
    shards = out / "shards"
    given = parse(SweepConfig, ["--config", config.sweep, "--storage", str(out / "sweeps")])
    start_ray(2)
    convert(render(out / "raw", config.seed, config.train_scenes, config.val_scenes), str(shards))
    overrides = {**given.overrides, "data.shards": str(shards)}
    sweep.run(replace(given, overrides=overrides, seeds=(config.seed,)))


if __name__ == "__main__":
    sys.exit(main(SweepDemoConfig, run, description=__doc__))
