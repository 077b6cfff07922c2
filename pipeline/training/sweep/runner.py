"""Runs the trials of a sweep by Ray Tune, each a training by Ray Train.

A trial is a training with a fixed name below the sweep's folder, and leaves a result file. So a
sweep that was killed goes on by being started again: trials with a result are not repeated, and one
that was under way resumes from its last checkpoint, as any training does. Tune's own restore, which
unpickles what it finds in the storage, is not used.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.data.storage import Storage, open_storage
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig
from pipeline.training.job import Lineage
from pipeline.training.launch import train
from pipeline.training.progress import duration
from pipeline.training.sweep import results
from pipeline.training.sweep.config import SweepConfig
from pipeline.training.sweep.results import Result
from pipeline.training.sweep.trials import Trial

logger = logging.getLogger(__name__)

Build = Callable[[Trial], TrainMixConfig]
"""Makes a trial's training configuration from the recipe."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # A failed trial has no metric.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(
    config: SweepConfig, trials: Sequence[Trial], build: Build, root: str, parent_run_id: str
) -> None:
    """Runs what has no result yet; returns when every trial has one.

    Args:
        config: The sweep.
        trials: Of a grid; empty with the other kinds of search.
        build: Must be importable on the cluster.
        root: Folder of the sweep.
        parent_run_id: MLflow run of the sweep, or an empty string.
    """
    storage = open_storage(root)
    waiting = [trial for trial in trials if not _is_done(storage, trial)]
    drawn = 0 if config.search == "grid" else config.num_trials
    if not waiting and not drawn:
        return
    first = build(waiting[0] if waiting else _first_draw(config))
    concurrent = config.max_concurrent or room_for(first)
    total = drawn or len(waiting)
    logger.info("%d trials, %d side by side", total, concurrent)
    # It misses the files of the loggers that are off; MLflow has their content.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with tempfile.TemporaryDirectory(prefix="lseg-sweep-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _run_trial, sweep=config, build=build, root=root, parent=parent_run_id
                ),
                {"cpu": 0.001},  # The training's own workers hold what they need.
            ),
            param_space=_param_space(config, waiting),
            tune_config=_tune_config(config, storage, first, concurrent),
            run_config=tune.RunConfig(
                name=config.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[_Progress(total)],
            ),
        )
        grid = tuner.fit()
    for outcome in grid:
        trial = _trial_of(config, outcome.config or {})
        if results.read(storage, trial.name) is not None:
            continue
        ended = "failed" if outcome.error else "stopped"
        metrics = _numbers(outcome.metrics or {})
        error = _first_line(outcome.error) if outcome.error else ""
        results.write(
            storage,
            Result(trial.name, trial.params, trial.seed, ended, metrics, error=error),
        )


def room_for(config: TrainMixConfig) -> int:
    """How many such trainings the cluster can hold at once; at least one."""
    free = ray.cluster_resources()
    rooms = [free.get("CPU", 0.0) / config.logical_cpus]
    if config.cluster.use_gpu:
        rooms.append(free.get("GPU", 0.0) / config.cluster.num_workers)
    return max(1, math.floor(min(rooms)))


def _is_done(storage: Storage, trial: Trial) -> bool:
    result = results.read(storage, trial.name)
    return result is not None and result.status != "failed"


def _run_trial(
    given: dict[str, Any], sweep: SweepConfig, build: Build, root: str, parent: str
) -> dict[str, Any]:
    """One trial, in a process of its own; its mistakes and failures are its result."""
    trial, storage = _trial_of(sweep, given), open_storage(root)
    if _is_done(storage, trial):  # Drawn by an earlier start.
        found = results.read(storage, trial.name)
        return dict(found.metrics) if found else {}
    began = time.monotonic()
    tags = {"sweep": sweep.name, "sweep.trial": trial.name, "sweep.seed": str(trial.seed)}
    tags |= {f"sweep.{key}": str(value) for key, value in trial.params.items()}
    try:
        config = build(trial)
        config = replace(config, tracking=sweep.tracking)
        outcome = train(config, lineage=Lineage(parent, tags), callbacks=[TuneReportCallback()])
    except Exception as error:
        logger.exception("trial %s failed", trial.name)
        seconds = round(time.monotonic() - began, 1)
        text = _first_line(error)
        failed = Result(trial.name, trial.params, trial.seed, "failed", seconds=seconds, error=text)
        results.write(storage, failed)
        return {"failed": True}
    metrics = _numbers(outcome.metrics)
    finished = Result(
        trial.name,
        trial.params,
        trial.seed,
        "finished",
        metrics,
        outcome.checkpoint,
        round(outcome.seconds, 1),
    )
    results.write(storage, finished)
    return metrics


def _trial_of(config: SweepConfig, given: dict[str, Any]) -> Trial:
    """The trial that Tune has dealt: of the grid, or drawn from the space."""
    if "trial" in given:
        return Trial(given["trial"]["params"], given["trial"]["seed"])
    return Trial({key: given[key] for key in config.space}, config.seeds[0])


def _param_space(config: SweepConfig, waiting: Sequence[Trial]) -> dict[str, Any]:
    if config.search == "grid":
        rows = [{"params": trial.params, "seed": trial.seed} for trial in waiting]
        return {"trial": tune.grid_search(rows)}
    return {key: _domain(distribution) for key, distribution in config.space.items()}


def _domain(distribution: dict[str, Any]) -> Any:
    ((kind, values),) = distribution.items()
    if kind == "choice":
        return tune.choice(values)
    if kind == "integer":
        return tune.randint(int(values[0]), int(values[1]) + 1)
    return (tune.uniform if kind == "uniform" else tune.loguniform)(*map(float, values))


def _first_draw(config: SweepConfig) -> Trial:
    """Some point of the space, to see what a training takes."""
    return Trial({k: next(iter(d.values()))[0] for k, d in config.space.items()}, config.seeds[0])


def _tune_config(
    config: SweepConfig, storage: Storage, example: TrainMixConfig, concurrent: int
) -> tune.TuneConfig:
    scheduler = None
    if config.early_stopping.grace_steps:
        _check_early_stopping(config, example)
        scheduler = ASHAScheduler(
            time_attr="step",
            metric=config.metric,
            mode="max",
            grace_period=config.early_stopping.grace_steps,
            max_t=max(example.train.steps, config.early_stopping.grace_steps),
            reduction_factor=config.early_stopping.reduction_factor,
        )
    if config.search == "tpe":
        done = [r for r in results.read_all(storage).values() if r.status == "finished"]
        return tune.TuneConfig(
            # ASHA has been told the metric already, and Tune refuses to tell it twice.
            metric=None if scheduler else config.metric,
            mode=None if scheduler else "max",
            search_alg=_tpe(config, done),
            scheduler=scheduler,
            num_samples=max(0, config.num_trials - len(done)),
            max_concurrent_trials=concurrent,
        )
    # The same draws from start to start, so that results are found again.
    generator = BasicVariantGenerator(random_state=config.seeds[0], max_concurrent=concurrent)
    return tune.TuneConfig(
        search_alg=generator,
        scheduler=scheduler,
        num_samples=config.num_trials if config.search == "random" else 1,
    )


def _tpe(config: SweepConfig, done: Sequence[Result]) -> Any:
    try:
        import optuna  # noqa: F401  # type: ignore[import-not-found]
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError(
            "search=tpe: needs the package optuna: pip install optuna, or use search=random"
        ) from None
    told: dict[str, Any] = {}
    if done:
        told["points_to_evaluate"] = [result.params for result in done]
        told["evaluated_rewards"] = [result.value(config.metric) for result in done]
    space = {key: _domain(distribution) for key, distribution in config.space.items()}
    return OptunaSearch(space, metric=config.metric, mode="max", seed=config.seeds[0], **told)


def _check_early_stopping(config: SweepConfig, example: TrainMixConfig) -> None:
    train_config = example.train
    if train_config.validate_every != train_config.checkpoint_every:
        raise UserError(
            f"early_stopping.grace_steps={config.early_stopping.grace_steps}: trials are compared "
            f"at checkpoints, so train.validate_every={train_config.validate_every} and "
            f"train.checkpoint_every={train_config.checkpoint_every} must be equal: set them in "
            "overrides"
        )


class _Progress(tune.Callback):
    """One line of log for each trial that ends."""

    def __init__(self, total: int) -> None:
        self._total, self._ended, self._began = total, 0, time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._line(trial, "failed" if (trial.last_result or {}).get("failed") else "ended")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._line(trial, "failed")

    def _line(self, trial: Any, word: str) -> None:
        self._ended += 1
        passed = time.monotonic() - self._began
        left = passed / self._ended * (self._total - self._ended)
        given = trial.config.get("trial", {}).get("params", trial.config)
        logger.info(
            "trial %d/%d %s: %s; %s, ETA %s",
            self._ended,
            self._total,
            word,
            ", ".join(f"{key}={value}" for key, value in given.items()),
            duration(passed),
            duration(left),
        )


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "/" in key
    } | ({"step": float(metrics["step"])} if "step" in metrics else {})


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
