"""Which trials Ray Tune deals: all of a grid, random draws, or draws where earlier ones did well.

A sweep that is started again must get its trials again. A grid's are what has no result yet, and
random draws come from the seed. TPE gets the results of earlier starts, and first deals what was
under way.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.results import Result
from pipeline.sweep.trials import Trial
from pipeline.training.config import TrainMixConfig, in_steps


def trial_of(config: SweepConfig, given: dict[str, Any]) -> Trial:
    """The trial that Tune has dealt: of the grid, or drawn from the space."""
    if "trial" in given:
        return Trial(**given["trial"])
    return Trial({key: given[key] for key in config.space}, config.seeds[0])


def param_space(config: SweepConfig, waiting: Sequence[Trial]) -> dict[str, Any]:
    """What Tune deals from; of a grid, the trials that have no result yet."""
    if config.search == "grid":
        return {"trial": tune.grid_search([asdict(trial) for trial in waiting])}
    return {} if config.search == "tpe" else _domains(config)


def num_to_deal(config: SweepConfig, waiting: Sequence[Trial], storage: Storage) -> int:
    """How many trials this start deals, those of random draws that have a result included."""
    if config.search == "grid":
        return len(waiting)
    if config.search == "random":
        return config.num_trials
    num_done = sum(result.is_done for result in results.read_all(storage).values())
    return max(0, config.num_trials - num_done)


def tune_config(
    config: SweepConfig, storage: Storage, example: TrainMixConfig, num: int, concurrent: int
) -> tune.TuneConfig:
    """How Tune deals `num` trials, `concurrent` side by side, and which it stops early.

    `example` is the training of one of them; the results so far lie in `storage`.

    Raises:
        UserError: optuna is not installed.
    """
    # The same draws from start to start, so that results are found again.
    search: Any = BasicVariantGenerator(random_state=config.seeds[0], max_concurrent=concurrent)
    if config.search == "tpe":
        search = _tpe(config, list(results.read_all(storage).values()))
    return tune.TuneConfig(
        search_alg=search,
        scheduler=_scheduler(config, example),
        num_samples=1 if config.search == "grid" else num,
        max_concurrent_trials=concurrent if config.search == "tpe" else None,
    )


def _domains(config: SweepConfig) -> dict[str, Any]:
    makers = {
        "choice": tune.choice,
        "integer": lambda ends: tune.randint(int(ends[0]), int(ends[1]) + 1),
        "uniform": lambda ends: tune.uniform(*map(float, ends)),
        "log_uniform": lambda ends: tune.loguniform(*map(float, ends)),
    }
    spaces = ((key, *space.items()) for key, space in config.space.items())
    return {key: makers[kind](values) for key, (kind, values) in spaces}


def check_stopping(config: SweepConfig, training: TrainMixConfig) -> None:
    """Makes sure that a trial has figures to be stopped early by.

    Raises:
        UserError: It has none on its way, or ends before it could be stopped.
    """
    stopping, train = config.early_stopping, in_steps(training.train, 0)
    if not stopping.grace_steps:
        return
    if not train.validate_every or train.validate_every != train.checkpoint_every:
        raise UserError(
            f"early_stopping.grace_steps={stopping.grace_steps}: trials are compared at "
            f"checkpoints, so train.validate_every={train.validate_every} and "
            f"train.checkpoint_every={train.checkpoint_every} must be equal and above 0: set both "
            "in overrides"
        )
    if stopping.grace_steps >= train.steps:
        raise UserError(
            f"early_stopping.grace_steps={stopping.grace_steps}: must be below "
            f"train.steps={train.steps}, or no trial is stopped: set train.steps in overrides"
        )


def _scheduler(config: SweepConfig, example: TrainMixConfig) -> ASHAScheduler | None:
    stopping, train = config.early_stopping, in_steps(example.train, 0)
    if not stopping.grace_steps:
        return None
    return ASHAScheduler(
        time_attr="step",
        metric=config.metric,
        mode="max",
        grace_period=stopping.grace_steps,
        max_t=train.steps,
        reduction_factor=stopping.reduction_factor,
        stop_last_trials=False,  # One that has reached the end ends by itself, with its result.
    )


def _tpe(config: SweepConfig, known: Sequence[Result]) -> Any:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError(
            "search=tpe: needs the package optuna: run `pip install -c constraints.txt "
            "'.[sweep]'`, or set search to random"
        ) from None

    class Tpe(OptunaSearch):
        """Without the figures that a trial reports on its way, which its pruner would need."""

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """Nothing: a report without a validation lacks the metric."""

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = [result for result in known if _is_within(config, result.params)]
    search = Tpe(
        OptunaSearch.convert_search_space(_domains(config)),
        metric=config.metric,
        mode="max",
        # Its first draws are random: with the same seed they would be those of the earlier start.
        seed=config.seeds[0] + len(known),
        points_to_evaluate=[r.params for r in known if r.status == "running"] or None,
    )
    for result in known:
        value = result.value(config.metric)
        if result.is_done and not math.isnan(value):
            search.add_evaluated_point(result.params, value)
    return search


def _is_within(config: SweepConfig, params: dict[str, Any]) -> bool:
    """Whether a draw of an earlier start fits the space, which may have been changed since."""

    def fits(value: Any, kind: str, ends: list[Any]) -> bool:
        if kind == "choice":
            return value in ends
        return isinstance(value, int | float) and ends[0] <= value <= ends[1]

    return params.keys() == config.space.keys() and all(
        fits(params[key], *next(iter(space.items()))) for key, space in config.space.items()
    )
