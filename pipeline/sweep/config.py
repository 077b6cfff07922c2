"""The configuration of a sweep: a recipe, what to vary, and how to judge it."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import UserError, did_you_mean
from pipeline.tracking.config import TrackingConfig

DISTRIBUTIONS = ("uniform", "log_uniform", "integer", "choice")
_SEED = "run.seed"
_OWN_KEYS = ("run.name", "run.storage")
_OWN_EVALUATION_KEYS = ("checkpoint", "out")
_FIGURES = ("miou", "pixel_accuracy")


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends trials that are behind the others at the same step (successive halving, ASHA)."""

    grace_steps: int = 0
    """Optimiser steps that every trial gets; 0 stops none early. Trials are compared at each
    checkpoint, so the recipe must validate as often as it saves."""
    reduction_factor: int = 3
    """ASHA reduction factor: one in this many trials continues past a rung."""

    def __post_init__(self) -> None:
        if self.grace_steps < 0:
            raise UserError(f"early_stopping.grace_steps={self.grace_steps}: must be 0 or more")
        if self.reduction_factor < 2:
            raise UserError(
                f"early_stopping.reduction_factor={self.reduction_factor}: must be at least 2"
            )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Trainings that differ in a few settings."""

    name: str
    """Names the sweep; the same name with the same storage resumes."""
    base: str
    """Recipe of `jobs/train_mix.py` that all trials start from: a path from the repository's
    root, or an absolute one."""
    storage: str = "runs/sweeps"
    """Folder for the trials' checkpoints and the comparison: a directory, or `s3://`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of the recipe, by dotted key, that hold for all trials."""
    grid: dict[str, Any] = field(default_factory=dict)
    """A list of values by dotted key; every combination is tried."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """Combinations one by one, instead of `grid` or besides it: values by dotted key."""
    space: dict[str, Any] = field(default_factory=dict)
    """With `search` random or tpe, instead of `grid`: by dotted key one of {uniform: [a, b]},
    {log_uniform: [a, b]}, {integer: [a, b]}, {choice: [...]}."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """`grid` tries `grid` and `trials`; `random` draws from `space`; `tpe` draws where earlier
    trials did well (needs the package optuna)."""
    num_trials: int = 0
    """Draws of `random` and `tpe`."""
    seeds: tuple[int, ...] = (0,)
    """Every combination is trained with each."""
    average_over: tuple[str, ...] = ()
    """Keys of `grid` or `trials` that are repetitions, as seeds are: the folds of a benchmark, say.
    The comparison gives mean and spread over them."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Settings of `jobs/evaluate.py`, by dotted key, to score each trial's last checkpoint with.
    Without `workers.*` it gets what the training had; without `folds`, the trial's
    `train.test_fold`. Its figures are `eval/miou`, `eval/fb_iou`, ..."""
    metric: str = "val/miou"
    """What is compared, larger being better: `val/miou` or `val/pixel_accuracy`, the same of one
    dataset (`val/cityscapes/miou`), or with `evaluate` one of its figures (`eval/miou`)."""
    max_concurrent: int = 0
    """Trials side by side; 0 for as many as the cluster has room for."""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}", self.name):
            raise UserError(
                f"name={self.name[:100]!r}: must be at most 200 letters, digits, '.', '_' and '-' "
                "and begin with a letter or digit, since it names a folder"
            )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds={list(self.seeds)}: must be different numbers from 0 on")
        if self.max_concurrent < 0:
            raise UserError(f"max_concurrent={self.max_concurrent}: must be 0 or more")
        self._check_choice()
        self._check_keys()
        self._check_metric()

    @property
    def root(self) -> str:
        """The folder of the sweep, below `storage`."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def varied(self) -> tuple[str, ...]:
        """The keys that differ between trials, besides the seed."""
        keys = [*self.grid, *self.space, *(key for trial in self.trials for key in trial)]
        return tuple(dict.fromkeys(keys))

    def _check_choice(self) -> None:
        if self.search == "grid":
            if self.space or self.num_trials:
                raise UserError(
                    "space, num_trials: would be ignored with search=grid: set search to random or "
                    "tpe, or use grid"
                )
            if not self.grid and not self.trials:
                raise UserError("grid={}: nothing to vary: give grid or trials")
            return
        if self.grid or self.trials:
            raise UserError(f"grid, trials: would be ignored with search={self.search}: use space")
        if not self.space or self.num_trials < 1:
            raise UserError(
                f"search={self.search}: needs space and num_trials: say what to draw, how often"
            )
        if len(self.seeds) > 1:
            raise UserError(
                f"seeds={list(self.seeds)}: search={self.search} trains each draw once: give one"
            )
        for key, distribution in self.space.items():
            _check_distribution(key, distribution)

    def _check_keys(self) -> None:
        places = {"overrides": self.overrides, "grid": self.grid, "space": self.space}
        places |= {f"trials[{i}]": trial for i, trial in enumerate(self.trials)}
        for place, values in places.items():
            for key in values:
                if key in _OWN_KEYS or key.startswith("tracking."):
                    raise UserError(f"{place}.{key}: is set by the sweep itself: leave it out")
                if key == _SEED:
                    raise UserError(f"{place}.{key}: use seeds")
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                nested = isinstance(values, dict) and values
                hint = f": write {key}.{next(iter(values))}: [...]" if nested else ""
                raise UserError(f"grid.{key}={values!r}: must be a list of values{hint}")
            counts = Counter(json.dumps(value, sort_keys=True, default=str) for value in values)
            if twice := [text for text, count in counts.items() if count > 1]:
                raise UserError(f"grid.{key}: holds {twice[0]} twice: leave one out")
        for key in (key for key in self.overrides if key in self.grid or key in self.space):
            place = "grid" if key in self.grid else "space"
            raise UserError(
                f"overrides.{key}: would be ignored, since {place} sets it in every trial: "
                "leave one of them out"
            )
        for key in self.average_over:
            if key not in self.varied or key in self.space:
                raise UserError(
                    f"average_over={key}: must be a key of grid or trials"
                    f"{did_you_mean(key, self.varied)}"
                )
        for key in self.evaluate:
            if key in _OWN_EVALUATION_KEYS or key.startswith("tracking."):
                raise UserError(f"evaluate.{key}: is set by the sweep itself: leave it out")

    def _check_metric(self) -> None:
        part, _, figure = self.metric.partition("/")
        if part == "eval" and figure:
            if not self.evaluate:
                raise UserError(f"metric={self.metric}: needs evaluate: say what to score with")
            if self.early_stopping.grace_steps:
                raise UserError(
                    f"early_stopping: metric={self.metric} is known at a trial's end alone: leave "
                    "early_stopping out, or compare val/miou"
                )
        elif part != "val" or figure.rsplit("/", 1)[-1] not in _FIGURES:
            known = ["val/miou", "val/pixel_accuracy", "eval/miou"]
            raise UserError(
                f"metric={self.metric}: must be val/miou, val/pixel_accuracy, the same of a "
                "dataset (val/cityscapes/miou), or with evaluate eval/FIGURE"
                f"{did_you_mean(self.metric, known)}"
            )


def _check_distribution(key: str, distribution: Any) -> None:
    given = next(iter(distribution), "") if isinstance(distribution, dict) else ""
    if given not in DISTRIBUTIONS or len(distribution) != 1:
        raise UserError(
            f"space.{key}={distribution}: must be one of {', '.join(DISTRIBUTIONS)} with its "
            f"values{did_you_mean(str(given), DISTRIBUTIONS)}"
        )
    ((kind, values),) = distribution.items()
    if not isinstance(values, list) or not values:
        raise UserError(f"space.{key}.{kind}={values!r}: must be a list of values")
    if kind == "choice":
        return
    numbers = len(values) == 2 and all(isinstance(value, int | float) for value in values)
    if not numbers or not values[0] < values[1] or (kind == "log_uniform" and values[0] <= 0):
        above = " above 0" if kind == "log_uniform" else ""
        raise UserError(f"space.{key}.{kind}={values}: must be two numbers{above}, lower one first")
