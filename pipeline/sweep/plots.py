"""Plots of a sweep: the metric against each setting that is a number, and learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.sweep.comparison import Comparison, Judged, Row
from pipeline.sweep.diagnosis import LOSS

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours of Okabe and Ito, for people who do not distinguish red from green."""
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def draw_all(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the plots that the sweep has data for; returns their paths."""
    written = []
    for key in comparison.keys:
        rows = [row for row in comparison.rows if type(row.params.get(key)) in (int, float)]
        if len({row.params[key] for row in rows}) > 1:
            path = folder / f"{comparison.metric.replace('/', '_')}_by_{comparison.short[key]}.png"
            _draw_setting(comparison, key, rows, path)
            written.append(path)
    for metric in (LOSS, comparison.metric):
        if any(len(judged.histories.get(metric, ())) > 1 for judged in comparison.trials):
            path = folder / f"curves_{metric.replace('/', '_')}.png"
            _draw_curves(comparison, metric, path)
            written.append(path)
    return written


def _draw_setting(comparison: Comparison, key: str, numeric: Sequence[Row], path: Path) -> None:
    """The metric against one setting, a line for each combination of the others."""
    figure = Figure(figsize=(7.5, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Row]] = {}
    for row in numeric:
        rest = {k: v for k, v in row.params.items() if k != key}
        groups.setdefault(_label(comparison, rest), []).append(row)
    positions = sorted({float(row.params[key]) for row in numeric})
    for number, (label, rows) in enumerate(sorted(groups.items())):
        rows = sorted((row for row in rows if row.values), key=lambda row: row.params[key])
        if not rows:
            continue
        axes.errorbar(
            [float(row.params[key]) for row in rows],
            [row.mean for row in rows],
            yerr=[0.0 if np.isnan(row.spread) else row.spread for row in rows],
            label=label or comparison.metric,
            capsize=3,
            marker=_MARKERS[number % len(_MARKERS)],
            **_style(number),
        )
        for row in rows:
            if row.outcomes.get("collapsed"):
                place = (float(row.params[key]), row.mean)
                axes.annotate(
                    "collapsed", place, (0, 8), textcoords="offset points", ha="center", fontsize=8
                )
    if positions[0] > 0 and positions[-1] / positions[0] > 50:
        axes.set_xscale("log")
    elif len(positions) < 9:
        axes.set_xticks(positions)
    _save(figure, axes, key, comparison.metric, len(groups), path)


def _draw_curves(comparison: Comparison, metric: str, path: Path) -> None:
    """A line a trial, a colour for each combination."""
    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    cells: dict[str, list[Judged]] = {}
    for judged in comparison.trials:
        cells.setdefault(_label(comparison, judged.result.params), []).append(judged)
    for number, (label, group) in enumerate(cells.items()):
        for position, judged in enumerate(group):
            history = judged.histories.get(metric, ())
            if history:
                steps, values = zip(*history, strict=True)
                named = label if position == 0 else None
                axes.plot(steps, values, label=named, linewidth=1.3, **_style(number))
    _save(figure, axes, "optimiser step", metric, len(cells), path)


def _style(number: int) -> dict[str, Any]:
    """One look for each of 28 lines."""
    line = _LINES[number // len(COLOURS) % len(_LINES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": line}


def _label(comparison: Comparison, params: dict[str, Any]) -> str:
    return ", ".join(f"{comparison.short[key]}={value}" for key, value in params.items())


def _save(figure: Figure, axes: Axes, x: str, y: str, num_lines: int, path: Path) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if num_lines > 1:
        columns = 1 if num_lines <= 14 else 2
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, ncols=columns
        )
    FigureCanvasAgg(figure)
    figure.savefig(path, bbox_inches="tight")
