"""Trains LSeg many times with different settings, and compares the outcomes.

    python jobs/sweep.py --config jobs/sweeps/regularizer.yaml --overrides.data.shards s3://...
    ray job submit --working-dir . -- python jobs/sweep.py --config SWEEP --storage s3://sweeps
    python jobs/sweep.py --config SWEEP --dry_run true

The same `name` with the same `storage` resumes, and tries failed trials again. Trials are MLflow
runs below the sweep's own, which carries the comparison. What the command line gives as `overrides`
adds to the file's, and wins where both set a key.
"""

import functools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import REPOSITORY, main, parse, start_ray
from jobs.mistakes import options, read_recipe, read_value
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.sweep.config import SweepConfig
from pipeline.training.config import TrainMixConfig

if TYPE_CHECKING:
    from pipeline.sweep.runner import Builders
    from pipeline.sweep.trials import Trial

logger = logging.getLogger("jobs.sweep")


@dataclass(frozen=True, kw_only=True)
class JobConfig(SweepConfig):
    """A sweep, or a dry run of it."""

    dry_run: bool = False
    """Check every trial, and list them with what earlier starts left of each; train nothing."""


def main_run(given: JobConfig) -> None:
    """Runs the sweep, or prints what it would do."""
    from pipeline.sweep.launch import absolute, plan

    config = SweepConfig(**{f.name: getattr(given, f.name) for f in fields(SweepConfig)})
    if given.dry_run:
        config = absolute(config)
        print("\n".join(plan(config, builders(config))))
    else:
        run(config)


def run(given: SweepConfig) -> None:
    """Connects to Ray, runs the trials, and shows the comparison.

    Raises:
        UserError: See `run_sweep`; or every trial failed.
    """
    from rich.console import Console

    from pipeline.progress import duration
    from pipeline.sweep.launch import absolute, run_sweep

    config = absolute(given)
    outcome = run_sweep(config, builders(config), start_ray)
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160).print(
        outcome.comparison.table()
    )
    for line in outcome.comparison.verdict.splitlines():
        logger.info("%s", line)
    logger.info("finished in %s: %s", duration(outcome.seconds), outcome.folder)
    logger.info("%s", outcome.ui_hint)
    trials = outcome.comparison.trials
    if all(judged.result.status == "failed" for judged in trials):
        raise UserError(
            f"name={config.name}: all of its {len(trials)} trials failed, the first by: "
            f"{trials[0].result.error}: fix that, and start the same command again"
        )


def builders(config: SweepConfig) -> "Builders":
    """The functions that make the configurations of the sweep's trials."""
    from pipeline.sweep.runner import Builders

    recipe = recipe_path(config.base).read_text(encoding="utf-8")
    return Builders(
        functools.partial(build_trial, config, recipe),
        functools.partial(build_evaluation, config),
    )


def merge_overrides(words: Sequence[str]) -> list[str]:
    """Extends a command line by `--overrides` that hold those of its sweep file too.

    The parser takes `--overrides` for the whole mapping, in place of the file's, and
    `--overrides.data.shards` for a mapping in a mapping. What cannot be read is left as it is, for
    the parser to refuse.
    """
    given = list(options(words))
    if not any(key.partition(".")[0] == "overrides" for key, _ in given):
        return list(words)
    merged: dict[str, Any] = {}
    # Files first, then whole mappings, then single keys: what is more specific wins.
    order = {"config": 0, "overrides": 1}
    try:
        for key, value in sorted(given, key=lambda option: order.get(option[0], 2)):
            if key == "config":
                merged = read_recipe(value).get("overrides", merged)
            elif key == "overrides":
                merged = merged | read_value(value)
            elif key.startswith("overrides."):
                merged = merged | {key.removeprefix("overrides."): read_value(value)}
    except (UserError, TypeError, AttributeError):
        return list(words)
    return [*words, f"--overrides={json.dumps(merged, default=str)}"]


def recipe_path(base: str) -> Path:
    """Finds the recipe's file.

    Raises:
        UserError: There is none.
    """
    for path in (Path(base).expanduser(), REPOSITORY / base):
        if path.is_file():
            return path.resolve()
    raise UserError(f"base={base}: no such recipe: give the path of a recipe of train_mix.py")


def build_trial(config: SweepConfig, recipe: str, trial: "Trial") -> TrainMixConfig:
    """Builds a trial's training: the recipe under the sweep's and the trial's settings."""
    from pipeline.sweep.trials import arguments
    from pipeline.training.driver.launch import absolute

    words = [f"--config={recipe}", *arguments(config, trial, config.root)]
    return absolute(parse(TrainMixConfig, words))


def build_evaluation(
    config: SweepConfig, training: TrainMixConfig, checkpoint: str
) -> EvaluateConfig:
    """Builds the evaluation of a trial's checkpoint, on the resources of its training."""
    from pipeline.sweep.trials import settings_words

    cluster = training.cluster
    # A trial that asked for more than it holds could wait for another one that does the same.
    names = ("num_workers", "cpus_per_worker", "use_gpu")
    settings: dict[str, Any] = {f"workers.{name}": getattr(cluster, name) for name in names}
    if training.train.test_fold is not None:
        settings["folds"] = [training.train.test_fold]
    settings |= config.evaluate
    settings |= {"checkpoint": checkpoint, "out": f"{training.run.storage}/evaluation"}
    return parse(EvaluateConfig, settings_words(settings))


if __name__ == "__main__":
    sys.exit(main(JobConfig, main_run, merge_overrides(sys.argv[1:]), __doc__))
