"""Runs the trials of a sweep by Ray Tune, each a training by Ray Train.

A trial is a training with a fixed name below the sweep's folder, and leaves a result file. So a
sweep that was killed resumes when it is started again: trials with a result are not repeated, and
one that was under way resumes from its last checkpoint, as any training does. Tune's own restore,
which unpickles what it finds in the storage, is not used.
"""

import logging
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from model.errors import ModelError
from pipeline.errors import Terminated, UserError, did_you_mean
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.launch import evaluate
from pipeline.progress import duration
from pipeline.signals import handled
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.results import Result
from pipeline.sweep.search import num_to_deal, param_space, trial_of, tune_config
from pipeline.sweep.settings import settings_of
from pipeline.sweep.trials import Trial, examples, setting_tags
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.launch import Outcome, plan_run, train
from pipeline.training.job import Lineage

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # A failed trial has no metric.
    "RAY_AIR_NEW_OUTPUT": "0",
}
_ENDED = "ended"
"""In a trial's last report to Tune, as against those on its way."""
_UNSTORED = "unstored"
"""In the last report of a trial whose result the storage did not take: why."""


@dataclass(frozen=True)
class Builders:
    """Make the configurations of a trial; they must be importable on the cluster."""

    training: Callable[[Trial], TrainMixConfig]
    evaluation: Callable[[TrainMixConfig, str], EvaluateConfig]
    """From its training and its checkpoint; asked if the sweep has an `evaluate`."""


def run_trials(
    config: SweepConfig,
    trials: Sequence[Trial],
    build: Builders,
    storage: Storage,
    parent_run_id: str,
) -> None:
    """Runs what has no result yet; returns when every trial has one.

    `trials` are those of a grid, none with the other kinds of search. `parent_run_id` is the MLflow
    run of the sweep, or an empty string.

    Raises:
        UserError: A setting does not fit the search, the trials do not report the metric, or the
            storage does not take their results.
        KeyboardInterrupt: By Ctrl-C or SIGTERM.
    """
    waiting = [trial for trial in trials if _done(storage, trial) is None]
    num = num_to_deal(config, waiting, storage)
    if not num:
        return
    example = build.training(waiting[0] if waiting else examples(config)[0])
    concurrent = config.max_concurrent or room_for(example)
    logger.info("%d trials, %d side by side", num, concurrent)
    # It misses the files of the loggers that are off; MLflow has their content.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    ledger = _Ledger(config, storage, num)
    stopper = _Stopper(config.metric, ledger)
    run = tune.with_parameters(_run_trial, sweep=config, build=build, parent=parent_run_id)
    # Beside this process, whose local folder Tune knows; the training's own workers are the load.
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    with (
        tempfile.TemporaryDirectory(prefix="lseg-sweep-") as scratch,
        handled(stopper.terminate, signal.SIGTERM),
    ):
        tune.Tuner(
            tune.with_resources(run, tune.PlacementGroupFactory([here])),
            param_space=param_space(config, waiting),
            tune_config=tune_config(config, storage, example, num, concurrent),
            run_config=tune.RunConfig(
                name=config.name, storage_path=scratch, verbose=0, stop=stopper, callbacks=[ledger]
            ),
        ).fit()
        if ledger.problem is not None:
            raise ledger.problem
        ledger.settle()
    if stopper.without_metric is not None:
        raise missing_metric(config, stopper.without_metric)
    if ledger.num_ended < num:
        words = f"{ledger.num_ended} of {num} trials ended; the same command goes on"
        raise (Terminated if stopper.terminated else KeyboardInterrupt)(words)


def room_for(config: TrainMixConfig) -> int:
    """How many such trainings the cluster can hold at once; at least one."""
    free = ray.cluster_resources()
    rooms = [free.get("CPU", 0.0) / config.logical_cpus]
    if config.cluster.use_gpu:
        rooms.append(free.get("GPU", 0.0) / config.cluster.num_workers)
    return max(1, math.floor(min(rooms)))


def missing_metric(config: SweepConfig, reported: Sequence[str]) -> UserError:
    """The complaint about a metric that the trials do not report."""
    prefix = config.metric.split("/")[0] + "/"
    near = sorted(name for name in reported if name.startswith(prefix))
    found = f"they report {', '.join(near)}" if near else f"they report nothing below {prefix}"
    return UserError(
        f"metric={config.metric}: no trial reports it; {found}{did_you_mean(config.metric, near)}; "
        "trials that are done are not trained again when it is changed"
    )


def _done(storage: Storage, trial: Trial) -> Result | None:
    result = results.read(storage, trial.name)
    return result if result is not None and result.is_done else None


def _run_trial(
    given: dict[str, Any], sweep: SweepConfig, build: Builders, parent: str
) -> dict[str, Any]:
    """One trial, in a process of its own; its mistakes and failures are its result."""
    trial, storage = trial_of(sweep, given), open_storage(sweep.root)
    if done := _done(storage, trial):  # Drawn by an earlier start.
        return {**done.metrics, _ENDED: True}
    began = time.monotonic()
    started = Result(trial.name, trial.params, trial.seed, "running")
    try:
        config = replace(build.training(trial), tracking=sweep.tracking)
        started = replace(started, settings=settings_of(sweep, config))
        results.write(storage, started)
        outcome, metrics = _train(trial, config, sweep, build, parent)
    except Exception as error:
        if _done(storage, trial):  # Stopped early, which ends what it waits for.
            return {}
        defect = error if not isinstance(error, UserError | ModelError) else None
        logger.error("trial %s failed: %s", trial.name, error, exc_info=defect)
        ended = replace(started, status="failed", error=_last_line(error))
    else:
        ended = replace(started, status="finished", metrics=metrics, checkpoint=outcome.checkpoint)
    try:
        results.write(storage, replace(ended, seconds=round(time.monotonic() - began, 1)))
    except UserError as problem:  # Raised here, Tune would print it as a defect.
        return {_ENDED: True, "failed": True, _UNSTORED: str(problem)}
    failed = {"failed": True} if ended.status == "failed" else {}
    return {**ended.metrics, _ENDED: True, **failed}


def _train(
    trial: Trial, config: TrainMixConfig, sweep: SweepConfig, build: Builders, parent: str
) -> tuple[Outcome, dict[str, float]]:
    """Trains a trial, and scores its checkpoint where the sweep says how."""
    tags = {"sweep": sweep.name, "sweep.trial": trial.name}
    tags |= setting_tags(trial.params, trial.seed, sweep.varied)
    lineage = Lineage(parent, tags)
    outcome = train(plan_run(config), lineage=lineage, callbacks=[TuneReportCallback()])
    metrics = _numbers(outcome.metrics)
    if sweep.evaluate:
        settings = replace(build.evaluation(config, outcome.checkpoint), tracking=sweep.tracking)
        figures = evaluate(settings).report["figures"]
        metrics |= _numbers({f"eval/{name}": value for name, value in figures.items()})
    return outcome, metrics


class _Ledger(tune.Callback):
    """One line of log for each trial that ends, and the result of those that cannot write it."""

    def __init__(self, config: SweepConfig, storage: Storage, total: int) -> None:
        self.num_ended, self._total, self._began = 0, total, time.monotonic()
        self._config, self._storage = config, storage
        self._written: list[Result] = []
        self.problem: UserError | None = None
        """What kept it from writing a result; Tune would make a traceback of it."""

    def settle(self) -> None:
        """Once all have ended: what a process wrote while it was stopped is not its result."""
        for result in self._written:
            results.write(self._storage, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended by itself, or was stopped early."""
        self._note(trial, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of the trial died."""
        error = trial.get_error()
        self._note(trial, "failed", f"its process died: {_last_line(error) if error else ''}")

    def _note(self, trial: Any, status: results.Status, error: str) -> None:
        try:
            self._end(trial, status, error)
        except UserError as problem:
            self.problem = self.problem or problem

    def _end(self, trial: Any, status: results.Status, error: str) -> None:
        ours, last = trial_of(self._config, trial.config), trial.last_result or {}
        if _UNSTORED in last:
            raise UserError(last[_UNSTORED])
        result = results.read(self._storage, ours.name)
        if result is None or (result.status != "finished" and not last.get(_ENDED)):
            known = result or Result(ours.name, ours.params, ours.seed, status)
            result = replace(known, status=status, metrics=_numbers(last), error=error)
            self._written.append(result)
            results.write(self._storage, result)
        self.num_ended += 1
        passed = time.monotonic() - self._began
        logger.info(
            "trial %d/%d %s: %s; %s, ETA %s",
            self.num_ended,
            self._total,
            result.status,
            ", ".join(f"{key}={value}" for key, value in ours.params.items()) or ours.name,
            duration(passed),
            duration(passed / self.num_ended * (self._total - self.num_ended)),
        )


class _Stopper(tune.Stopper):
    """Ends the sweep by SIGTERM, and when going on is in vain.

    That is when a trial that went well does not report the metric, or its result cannot be stored.
    """

    def __init__(self, metric: str, ledger: _Ledger) -> None:
        self._ledger = ledger
        self.terminated = False
        self.without_metric: list[str] | None = None
        """What such a trial reports."""
        self._metric = metric

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Asked at every report; stops no single trial."""
        well = result.get(_ENDED) and not result.get("failed")
        if well and self._metric not in result:
            self.without_metric = list(_numbers(result))
        return False

    def terminate(self, number: int, frame: Any) -> None:
        """Ends the sweep on SIGTERM, which Tune does not listen to."""
        self.terminated = True

    def stop_all(self) -> bool:
        """Whether to end all trials."""
        in_vain = self.without_metric is not None or self._ledger.problem is not None
        return self.terminated or in_vain


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "/" in key
    } | ({"step": float(metrics["step"])} if "step" in metrics else {})


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1][:300]}"
