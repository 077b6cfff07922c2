"""Whether a candidate replaces the champion: a pure function of both models' figures."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_ROUNDING = 1e-9
"""Figures that differ by less are equal: 0.302 - 0.3 is not quite 0.002 in binary."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation on the validation shards found; mIoU, 0 to 1."""

    mean: float
    """Over the datasets."""
    datasets: dict[str, float]
    """By dataset; one that has no labelled pixel is left out."""

    @classmethod
    def from_figures(cls, figures: Mapping[str, float]) -> "Scores":
        """From the figures of a report: `miou`, `DATASET/miou`, and others that do not count."""
        names = [name for name in figures if name.endswith("/miou")]
        datasets = {name.removesuffix("/miou"): float(figures[name]) for name in names}
        return cls(float(figures.get("miou", math.nan)), datasets)


@dataclass(frozen=True)
class Decision:
    """What becomes of a candidate, and why."""

    promote: bool
    reasons: tuple[str, ...]
    """Each a sentence; of a refusal, all that speaks against the candidate."""
    gain: float | None = None
    """Gain of the mean mIoU over the champion's; None where nothing was compared."""
    changes: dict[str, float] = field(default_factory=dict)
    """Change of the mIoU by dataset."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Decision":
        """The inverse of `to_dict`."""
        return cls(
            values["promote"], tuple(values["reasons"]), values["gain"], dict(values["changes"])
        )


def decide(
    champion: Scores | None, candidate: Scores, *, margin: float, max_drop: float
) -> Decision:
    """Compares two models that were evaluated alike.

    The candidate is promoted when its mean mIoU is higher by at least `margin` (and at all), and
    that of no dataset is lower by more than `max_drop`. A figure of either model that is no number
    is no comparison, and no candidate with such a one is promoted, not even as the first champion.
    Without a champion any other candidate is better. `margin` and `max_drop` are mIoU, 0 to 1.
    """
    if broken := _no_numbers(candidate):
        return Decision(False, (f"the candidate's mIoU is no number ({broken})",))
    if champion is None:
        return Decision(True, ("there was no champion: the first model that is trained is one",))
    if broken := _no_numbers(champion):
        reason = f"the champion's mIoU is no number ({broken}): promote by hand"
        return Decision(False, (reason,))
    against = []
    old, new = champion.datasets, candidate.datasets
    if unlike := sorted(old.keys() ^ new.keys()):
        against.append(f"only one of the two models has a score for {', '.join(unlike)}")
    changes = {name: new[name] - value for name, value in old.items() if name in new}
    gain = candidate.mean - champion.mean
    compared = f"mean mIoU {candidate.mean:.4f} against the champion's {champion.mean:.4f}"
    needed = f"{gain:+.4f}, and at least +{margin:.4f} is asked for"
    if not (gain > _ROUNDING and gain >= margin - _ROUNDING):
        against.append(f"{compared}: {needed}")
    for name, change in sorted(changes.items()):
        if change < -(max_drop + _ROUNDING):
            against.append(
                f"{name}: mIoU {new[name]:.4f} against the champion's {old[name]:.4f}: "
                f"{change:+.4f}, and at most -{max_drop:.4f} is allowed"
            )
    if against:
        return Decision(False, tuple(against), gain, changes)
    reasons = [f"{compared}: {needed}"]
    if changes:
        worst = min(changes, key=lambda name: changes[name])
        reasons.append(
            f"no dataset lost more than {max_drop:.4f}; {worst} changed least favourably: "
            f"{changes[worst]:+.4f}"
        )
    return Decision(True, tuple(reasons), gain, changes)


def _no_numbers(scores: Scores) -> str:
    """Names what is not finite: datasets, else the mean; empty where all is."""
    broken = [name for name, value in scores.datasets.items() if not math.isfinite(value)]
    return ", ".join(broken) or ("" if math.isfinite(scores.mean) else "mean")
