"""What became of a trial, in a word and in a sentence.

A collapsed regulariser (see `model.regularizer`) shows in three figures that every training logs:
the loss stays at chance, the loss of a network that cannot tell its labels apart (ln K of K labels,
less with a binary loss); the label-spread gain is far below 1; and with the published
initialisation the bias began negative.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from model.regularizer import DEAD_GAIN
from pipeline.sweep.results import Result
from pipeline.training.worker import regularizer_watch

Outcome = Literal["trained", "slow", "collapsed", "stopped early", "failed"]
"""`collapsed`: the loss stayed above 85 % of chance, and the regulariser passes less than a
hundredth of the differences between labels. `stopped early`: it was behind the others. `trained`:
the loss went below 85 % of chance. `slow`: none of these."""

LOSS, CHANCE = "train/loss", "train/chance_loss"
GAIN, BIAS = regularizer_watch.METRIC, regularizer_watch.BIAS_METRIC
HISTORIES = (LOSS, CHANCE, GAIN, BIAS)
"""Metrics that the diagnosis needs."""

TRAINED = 0.85
_TAIL = 0.2

History = Sequence[tuple[int, float]]
"""Step and value, by step."""


@dataclass(frozen=True)
class Diagnosis:
    """What became of a trial."""

    outcome: Outcome
    words: str
    loss_over_chance: float = math.nan
    """Mean of the last fifth of the loss, over the chance loss."""
    first_gain: float = math.nan
    last_gain: float = math.nan
    first_bias: float = math.nan


def diagnose(result: Result, histories: Mapping[str, History]) -> Diagnosis:
    """Judges a trial by what it left and the `HISTORIES`, as far as MLflow has them."""
    if result.status == "failed":
        return Diagnosis("failed", result.error or "failed without a word")
    losses, chances, gains, biases = (
        [value for _, value in histories.get(name, ())] or [math.nan] for name in HISTORIES
    )
    chance, first_gain, last_gain, first_bias = _tail(chances), gains[0], gains[-1], biases[0]
    ratio, early = _tail(losses) / chance, _early(result)
    outcome: Outcome = "stopped early" if early else "slow"
    words = f"{early}loss at {ratio:.2f} of chance ({chance:.3g})"
    if math.isnan(ratio):
        words = f"{early}MLflow has no losses of it: not judged"
    elif ratio >= TRAINED and last_gain < DEAD_GAIN:
        outcome = "collapsed"
        began = "from the first step" if first_gain < DEAD_GAIN else f"{first_gain:.1e} at first"
        words += (
            f"; the regulariser passes {last_gain:.1e} of the differences between labels "
            f"({began}); {_cause(first_bias)}"
        )
    elif not early and ratio < TRAINED:
        outcome = "trained"
    elif not early:
        words += ", not trained yet; no collapse"
    return Diagnosis(outcome, words, ratio, first_gain, last_gain, first_bias)


def _early(result: Result) -> str:
    """The beginning of what is said of a trial that was stopped early; empty for others."""
    if result.status != "stopped":
        return ""
    step = f" at step {result.metrics['step']:.0f}" if "step" in result.metrics else ""
    return f"stopped early{step}, behind the others; "


def _cause(first_bias: float) -> str:
    if math.isnan(first_bias):
        return "its first bias is not known"
    if first_bias < 0:
        return (
            f"its bias began negative ({first_bias:+.3f}), which drives the scores of all labels "
            "below zero, where each activation flattens them: init=identity does not"
        )
    return f"its bias began at {first_bias:+.3f}, so the kernel overshot later: lower the rate"


def _tail(values: Sequence[float]) -> float:
    """Mean of the last fifth of a history, at least its last value."""
    last = values[-max(1, round(_TAIL * len(values))) :]
    return sum(last) / len(last)
