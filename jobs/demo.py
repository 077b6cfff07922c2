"""Runs the whole system on one machine: `make demo`, `make demo SEED=7`, `make demo S3=1`.

Takes minutes. Renders the mini-seven in seven official layouts, converts them to shards, trains
LSeg on their mixture with two DDP workers, and evaluates what it learned and what it never saw.
Everything goes below `--out`, into one MLflow run, and - with `--s3` - through a real S3 server.
"""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, parse, start_ray
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig

logger = logging.getLogger("jobs.demo")

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo renders and trains."""

    out: str = "runs/demo"
    """Folder for everything that the demo makes, with one subfolder per seed."""
    seed: int = 0
    """Seed of the scenes, the weights, the order of the images and the evaluation."""
    s3: bool = False
    """Keep shards and checkpoints in a local S3 server instead of folders."""
    recipe: str = str(RECIPE)
    """Recipe of the training."""
    train_scenes: int = 160
    """Training scenes of each dataset."""
    val_scenes: int = 20
    """Validation scenes of each dataset."""
    steps: int = 0
    """Optimiser steps; 0 takes the number in the recipe."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("train_scenes", 2), ("val_scenes", 2), ("steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")


class Stopwatch:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Measures one stage and announces it."""
        logger.info("── %s: %s", name, what)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def run(config: DemoConfig) -> None:
    """Runs all stages and writes the report."""
    from jobs.local_s3 import local_s3
    from pipeline.demo.report import evaluate_demo
    from pipeline.progress import duration
    from pipeline.storage.places import ensure_writable_dir
    from pipeline.training.driver.launch import plan_run, train

    began = time.perf_counter()
    out = Path(config.out).resolve()
    work = out / f"seed-{config.seed}{'-s3' if config.s3 else ''}"
    ensure_writable_dir("out", config.out, work)
    watch = Stopwatch()
    with local_s3(work / "s3", ("lseg",)) if config.s3 else nullcontext():
        base = "s3://lseg" if config.s3 else str(work)
        training = _training(config, base, out)
        start_ray(training.logical_cpus, training.fewest_gpus)
        with watch.stage("render", "seven datasets in their official layouts"):
            roots = render(work / "raw", config.seed, config.train_scenes, config.val_scenes)
        with watch.stage("convert", "to WebDataset shards in the unified classes"):
            convert(roots, training.data.shards)
        with watch.stage("train", "LSeg on the weighted mixture"):
            outcome = train(plan_run(training))
        with watch.stage("evaluate", "seen and unseen classes, and the four behaviours"):
            report = evaluate_demo(training, outcome, config.seed, config.val_scenes, out)
    watch.seconds["total"] = round(time.perf_counter() - began, 1)
    report.finish(watch.seconds)
    if not config.s3:  # That server is gone.
        print(next_steps(work, outcome.checkpoint), file=sys.stderr)
    logger.info("demo finished in %s", duration(watch.seconds["total"]))


def next_steps(work: Path, checkpoint: str) -> str:
    """What to do with what the demo has made, as commands to copy."""
    picture = next(iter(sorted((work / "raw").rglob("*.jpg"))), work / "raw")
    return (
        "next        In these scenes each class is a pattern of small tiles, whose colours follow\n"
        "            from the words of its name. Ask for others, and look at the data:\n"
        f"  python jobs/predict.py {picture} \\\n"
        '    --labels "traffic light, traffic sign, sky" --other other \\\n'
        f"    --checkpoint {checkpoint} --out {work / 'predicted'}\n"
        f"  python jobs/preview.py --shards {work / 'shards'}\n"
        "            docs/data.md and docs/training.md go on with data of your own. The page on\n"
        "            which any words segment any image opens with\n"
        f"  python jobs/playground.py --checkpoint {checkpoint}"
    )


def render(folder: Path, seed: int, train_scenes: int, val_scenes: int) -> dict[str, Path]:
    """Writes the mini-seven in their official layouts and returns their roots by dataset."""
    from model.stand_in import stand_in_semantics
    from pipeline.data.taxonomy import label_text
    from pipeline.demo.layouts import write_mini_seven
    from pipeline.demo.world import world_classes

    names = world_classes()
    vectors = dict(zip(names, stand_in_semantics([label_text(n) for n in names]), strict=True))
    return write_mini_seven(folder, vectors, seed, train_scenes, val_scenes)


def convert(roots: Mapping[str, Path], out: str) -> None:
    """Converts the mini-seven to shards and prints a table of what was converted."""
    from rich.console import Console

    from pipeline.data.prepare.config import PrepareConfig, RootsConfig
    from pipeline.data.prepare.run import prepare

    given = RootsConfig(**{name: str(root) for name, root in roots.items()})
    summary = prepare(PrepareConfig(roots=given, out=out, samples_per_shard=20))
    Console(file=sys.stderr).print(summary.table())


def _training(config: DemoConfig, base: str, out: Path) -> TrainMixConfig:
    """The recipe's training with the locations and the seed of the demo."""
    from pipeline.training.driver.launch import absolute

    argv = ["--config", config.recipe, "--data.shards", f"{base}/shards"]
    argv += ["--run.storage", f"{base}/train", "--run.seed", str(config.seed)]
    if config.steps:
        argv += ["--train.steps", str(config.steps)]
    training = parse(TrainMixConfig, argv)
    tracking = training.tracking.resolved(out)
    name = f"{training.run.name}-seed-{config.seed}{'-s3' if config.s3 else ''}"
    return absolute(replace(training, run=replace(training.run, name=name), tracking=tracking))


if __name__ == "__main__":
    sys.exit(main(DemoConfig, run, description=__doc__))
