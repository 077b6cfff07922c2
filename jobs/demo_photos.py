"""Trains on photographs and real words on two cores: `make demo-photos PHOTOS=DIR`.

Takes 15 to 35 minutes. `--photos` is a folder of own datasets, such as `DIR/camvid` and
`DIR/ccp`, each with `images/`, `masks/` and `classes.csv`; docs/photos.md says how to get them.
Converts them to shards, trains one network on their mixture from weights of installed packages,
scores it by each set's own words, asks it for words that no training saw, and draws what it
answers. Everything goes below `--out` and into one MLflow run; the checkpoint is `OUT/checkpoint`.
"""

import logging
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, parse, start_ray
from jobs.demo import Stopwatch
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig

logger = logging.getLogger("jobs.demo_photos")

RECIPE = Path(__file__).parent / "recipes" / "photos.yaml"


@dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """What the demo on photographs reads and trains."""

    photos: str = ""
    """Folder of own datasets: each subfolder with `images/`, `masks/` and `classes.csv` is one."""
    out: str = "runs/photos"
    """Folder for everything that the demo makes."""
    seed: int = 0
    """Seed of the weights, the order of the photos, and the questions."""
    recipe: str = str(RECIPE)
    """Recipe of the training."""
    steps: int = 0
    """Optimiser steps; 0 takes the number in the recipe."""
    asked_photos: int = 24
    """Validation photos of each dataset that are asked by other words; all are scored by their
    own."""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 0), ("asked_photos", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")


def run(config: PhotosConfig) -> None:
    """Runs all stages and writes the report."""
    from pipeline.demo.photos import PhotosReport, ask_photos, check_kept, keep_checkpoint
    from pipeline.progress import duration
    from pipeline.storage.places import ensure_writable_dir
    from pipeline.training.driver.launch import plan_run, train

    began = time.perf_counter()
    sets = datasets_in(config.photos)
    out = Path(config.out).resolve()
    # Before any photo is converted: a missing package is told at once.
    training = _training(config, out)
    check_weights(training)
    check_kept(out / "checkpoint", training.run.name)
    ensure_writable_dir("out", config.out, out)
    watch = Stopwatch()
    start_ray(training.logical_cpus, training.fewest_gpus)
    with watch.stage("convert", f"{', '.join(sets)} to WebDataset shards in their own words"):
        convert(sets, training.data.shards)
    with watch.stage("train", "LSeg on their mixture"):
        outcome = train(plan_run(training))
    checkpoint = keep_checkpoint(outcome.checkpoint, out / "checkpoint")
    with watch.stage("evaluate", "each set by its own words"):
        evaluation = evaluate_sets(training, checkpoint, out)
    with watch.stage("ask", "words that no training saw"):
        words = ask_photos(training, checkpoint, config.asked_photos, out)
    watch.seconds["total"] = round(time.perf_counter() - began, 1)
    figures = {"checkpoint": str(checkpoint), "evaluation": evaluation, "words": words}
    PhotosReport(figures, out, training).finish(watch.seconds)
    print(next_steps(sets, checkpoint, out), file=sys.stderr)
    logger.info("demo on photographs finished in %s", duration(watch.seconds["total"]))


def datasets_in(photos: str) -> dict[str, Path]:
    """The own datasets in a folder, by name.

    Raises:
        UserError: There are none; says how to get some.
    """
    from pipeline.data.datasets.own import check_own_name

    if not photos:
        raise UserError(
            "photos: not set: docs/photos.md says how to get two public sets of photographs; then "
            "make demo-photos PHOTOS=DIR"
        )
    folder = Path(photos).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"photos={photos}: no such folder: name one that holds own datasets")
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/classes.csv"))}
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"photos={photos}: holds no dataset, which is a folder with images, masks and "
            f"classes.csv; it holds {there}: name the folder above them"
        )
    for name in found:
        check_own_name(name)
    return found


def check_weights(training: TrainMixConfig) -> None:
    """Refuses a training whose packages are not installed."""
    from pipeline.training.driver.preflight import check_model

    check_model(training.model)


def convert(sets: Mapping[str, Path], out: str) -> None:
    """Converts the datasets in their own classes, and prints a table of what was converted."""
    from rich.console import Console

    from pipeline.data.datasets.own import OwnDataset
    from pipeline.data.prepare.config import PrepareConfig
    from pipeline.data.prepare.run import prepare

    own = {name: OwnDataset(root=str(root)) for name, root in sets.items()}
    summary = prepare(PrepareConfig(own=own, out=out, taxonomy="native", samples_per_shard=128))
    Console(file=sys.stderr).print(summary.table())


def evaluate_sets(training: TrainMixConfig, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Scores each set's validation photos, and its test photos where it has some."""
    from pipeline.data.shards.format import find_manifests
    from pipeline.demo.frequent import frequent_figures, photos_by_class
    from pipeline.evaluation.config import EvaluateConfig
    from pipeline.evaluation.launch import evaluate
    from pipeline.storage.open import open_storage

    shards = training.data.shards
    shown = photos_by_class(shards, (training.data.train_split, training.data.val_split))
    figures: dict[str, Any] = {}
    for split in ("val", "test"):
        if not find_manifests(open_storage(shards), split):
            continue
        config = EvaluateConfig(
            checkpoint=str(checkpoint),
            out=str(out / "evaluation"),
            shards=shards,
            split=split,
            labels="native",
            tracking=training.tracking,
        )
        found = evaluate(config)
        values = found.report["figures"] | frequent_figures(Path(found.folder), shown)
        for key, value in values.items():
            name, _, figure = key.rpartition("/")
            if name:
                place = name if split == "val" else f"{name} ({split})"
                figures.setdefault(place, {})[figure] = round(value, 4)
    return figures


def next_steps(sets: Mapping[str, Path], checkpoint: Path, out: Path) -> str:
    """What to do with the checkpoint, as commands to copy."""
    from pipeline.data.pixels.formats import SUFFIXES

    folder = next(iter(sets.values())) / "images"
    photos = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    picture, answers = next(photos, folder), out / "predicted"
    return (
        "next        Ask a photo of yours for any words:\n"
        f"  python jobs/predict.py {shlex.quote(str(picture))} \\\n"
        '    --labels "car, road, tree, building, sky, person" --other other \\\n'
        f"    --checkpoint {shlex.quote(str(checkpoint))} --out {shlex.quote(str(answers))}\n"
        "            docs/photos.md says what it can and cannot, and how to train it on your own."
    )


def _training(config: PhotosConfig, out: Path) -> TrainMixConfig:
    """The recipe's training with the locations and the seed of the demo."""
    from pipeline.training.driver.launch import absolute

    argv = ["--config", config.recipe, "--data.shards", str(out / "shards")]
    argv += ["--run.storage", str(out / "train"), "--run.seed", str(config.seed)]
    training = parse(TrainMixConfig, argv)
    run, schedule = training.run, training.train
    if config.steps:
        # A few steps, to see that all stages run, are fewer than the recipe's warm-up.
        warmup = min(schedule.warmup_steps, config.steps // 4)
        schedule = replace(schedule, steps=config.steps, warmup_steps=warmup)
    run = replace(run, name=f"{run.name}-seed-{config.seed}")
    tracking = training.tracking.resolved(out)
    return absolute(replace(training, run=run, train=schedule, tracking=tracking))


if __name__ == "__main__":
    sys.exit(main(PhotosConfig, run, description=__doc__))
