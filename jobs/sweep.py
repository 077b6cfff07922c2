"""Trains LSeg many times with different settings, and compares the outcomes.

    python jobs/sweep.py --config jobs/sweeps/regularizer.yaml --overrides.data.shards s3://...
    ray job submit --working-dir . -- python jobs/sweep.py --config SWEEP --storage s3://sweeps
    python jobs/sweep.py --config SWEEP --dry_run true

The same `name` with the same `storage` goes on where it stopped, and tries failed trials again.
Trials are MLflow runs below the sweep's own, which carries the comparison. What the command line
has of `overrides` adds to the file's, and wins where both set a key.
"""

import argparse
import functools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from jobs.cli import REPOSITORY, main, parse, start_ray
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.sweep.config import SweepConfig
from pipeline.training.config import TrainMixConfig

if TYPE_CHECKING:
    from pipeline.sweep.launch import SweepOutcome
    from pipeline.sweep.runner import Builders
    from pipeline.sweep.trials import Trial

logger = logging.getLogger("jobs.sweep")


@dataclass(frozen=True, kw_only=True)
class JobConfig(SweepConfig):
    """A sweep, or a look at what it would do."""

    dry_run: bool = False
    """Check every trial, and list them with what earlier starts left of each; train nothing."""


def main_run(given: JobConfig) -> "SweepOutcome | None":
    """As `run`, or the look at it."""
    from pipeline.sweep.launch import absolute, plan

    config = SweepConfig(**{f.name: getattr(given, f.name) for f in fields(SweepConfig)})
    if not given.dry_run:
        return run(config)
    config = absolute(config)
    print("\n".join(plan(config, builders(config))))
    return None


def run(given: SweepConfig) -> "SweepOutcome":
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
            f"{trials[0].result.error}: mend that, and start the same command again"
        )
    return outcome


def builders(config: SweepConfig) -> "Builders":
    """What makes the configurations of the sweep's trials."""
    from pipeline.sweep.runner import Builders

    recipe = recipe_path(config.base).read_text(encoding="utf-8")
    return Builders(
        functools.partial(build_trial, config, recipe),
        functools.partial(build_evaluation, config),
    )


def merge_overrides(argv: Sequence[str]) -> list[str]:
    """A command line whose overrides hold those of its sweep file too.

    The parser takes `--overrides` for the whole mapping, in place of the file's, and
    `--overrides.data.shards` for a mapping in a mapping. What cannot be read is left as it is, for
    the parser to complain about.
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--config", action="append", default=[])
    reader.add_argument("--overrides", action="append", default=[])
    try:
        given, rest = reader.parse_known_args(argv)
        texts = [Path(path).expanduser().read_text(encoding="utf-8") for path in given.config]
        files = [(yaml.safe_load(text) or {}).get("overrides") for text in texts]
        found = [overrides for overrides in files if overrides is not None][-1:]
        found += [yaml.safe_load(text) for text in given.overrides]
        dotted = _dotted_overrides(rest)
        if not given.overrides and not dotted:
            return list(argv)
        merged = {key: value for overrides in found for key, value in overrides.items()} | dotted
    except (argparse.ArgumentError, OSError, AttributeError, ValueError, yaml.YAMLError):
        return list(argv)
    return [*argv, f"--overrides={json.dumps(merged, default=str)}"]


def _dotted_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Those given one by one: `--overrides.KEY VALUE` or `--overrides.KEY=VALUE`."""
    found, prefix = {}, "--overrides."
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(prefix):
            key, equals, value = word.removeprefix(prefix).partition("=")
            found[key] = yaml.safe_load(value if equals else following)
    return found


def recipe_path(base: str) -> Path:
    """The recipe's file.

    Raises:
        UserError: There is none.
    """
    for path in (Path(base).expanduser(), REPOSITORY / base):
        if path.is_file():
            return path.resolve()
    raise UserError(f"base={base}: no such recipe: give the path of a recipe of train_mix.py")


def build_trial(config: SweepConfig, recipe: str, trial: "Trial") -> TrainMixConfig:
    """The training of a trial: the recipe's text under the sweep's and the trial's settings."""
    from pipeline.sweep.trials import arguments
    from pipeline.training.driver.launch import absolute

    root = f"{config.storage.rstrip('/')}/{config.name}"
    words = [f"--config={recipe}", *arguments(config, trial, root)]
    return absolute(parse(TrainMixConfig, words))


def build_evaluation(
    config: SweepConfig, training: TrainMixConfig, checkpoint: str
) -> EvaluateConfig:
    """The evaluation of a trial's checkpoint, on what its training ran on."""
    from pipeline.sweep.trials import settings_words

    cluster = training.cluster
    # A trial that waits for more than it had could wait for another one that does the same.
    settings: dict[str, Any] = {
        "workers.num_workers": cluster.num_workers,
        "workers.cpus_per_worker": cluster.cpus_per_worker,
        "workers.use_gpu": cluster.use_gpu,
    }
    if training.train.test_fold is not None:
        settings["folds"] = [training.train.test_fold]
    settings |= config.evaluate
    settings |= {"checkpoint": checkpoint, "out": f"{training.run.storage}/evaluation"}
    return parse(EvaluateConfig, settings_words(settings))


if __name__ == "__main__":
    sys.exit(main(JobConfig, main_run, merge_overrides(sys.argv[1:]), __doc__))
