"""The comparison of a sweep's trials: a table by combination, a verdict, and what it rests on."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from pipeline.training.sweep.diagnosis import Diagnosis, History
from pipeline.training.sweep.results import Result
from pipeline.training.sweep.trials import Trial


@dataclass(frozen=True)
class Row:
    """One combination of settings, over its seeds."""

    params: dict[str, Any]
    values: tuple[float, ...]
    """The metric of each trial that has it."""
    outcomes: dict[str, int]
    """How many trials came to what."""

    @property
    def mean(self) -> float:
        """Over the seeds; NaN without a value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; NaN with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Judged:
    """One trial with its judgement and its curves."""

    result: Result
    diagnosis: Diagnosis
    histories: Mapping[str, History]
    run_id: str = ""


@dataclass(frozen=True)
class Comparison:
    """All trials of a sweep, judged."""

    name: str
    metric: str
    rows: tuple[Row, ...]
    """The best first."""
    trials: tuple[Judged, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that are varied."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.params))

    @property
    def verdict(self) -> str:
        """The outcome in words, a sentence a line."""
        lines = [self._best(), *self._collapses()]
        failed = [j for j in self.trials if j.diagnosis.outcome == "failed"]
        if failed:
            first = failed[0]
            lines.append(
                f"{len(failed)} of {len(self.trials)} trials failed; the first, "
                f"{first.result.name}: {first.diagnosis.words}. The same command tries them again."
            )
        return "\n".join(lines)

    def _best(self) -> str:
        ranked = [row for row in self.rows if row.values]
        if not ranked:
            return f"No trial has a {self.metric}."
        best = ranked[0]
        text = f"Best {self.metric}: {_figure(best)} with {_words(best.params)}"
        if len(ranked) == 1:
            return text + "."
        second = ranked[1]
        text += f"; next {_figure(second)} with {_words(second.params)}"
        if math.isnan(best.spread) or math.isnan(second.spread):
            return text + ". One seed each says nothing about the spread: add seeds."
        gap = best.mean - second.mean
        noise = math.hypot(best.spread, second.spread) / math.sqrt(len(best.values))
        word = "more" if gap > 2 * noise else "less"
        return text + f". The difference, {gap:.3f}, is {word} than two standard errors of it."

    def _collapses(self) -> list[str]:
        lines = []
        for row in self.rows:
            count = row.outcomes.get("collapsed", 0)
            if count:
                example = next(
                    judged
                    for judged in self.trials
                    if judged.result.params == row.params
                    and judged.diagnosis.outcome == "collapsed"
                )
                total = sum(row.outcomes.values())
                lines.append(
                    f"Collapsed, {count} of {total}: {_words(row.params)}: "
                    f"{example.diagnosis.words}."
                )
        return lines

    def table(self) -> Table:
        """For the terminal."""
        table = Table(box=box.SIMPLE)
        for key in self.keys:
            table.add_column(key.rsplit(".", 1)[-1])
        for head in ("seeds", self.metric, "outcome"):
            table.add_column(head, justify="right")
        for row in self.rows:
            cells = [_cell(row.params.get(key, "")) for key in self.keys]
            counts = ", ".join(f"{count} {word}" for word, count in row.outcomes.items())
            table.add_row(*cells, str(sum(row.outcomes.values())), _figure(row), counts)
        return table

    def markdown(self) -> str:
        """Table and verdict, for MLflow's description of the run."""
        heads = [*(f"`{key}`" for key in self.keys), "seeds", f"`{self.metric}`", "outcome"]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for row in self.rows:
            counts = ", ".join(f"{count} {word}" for word, count in row.outcomes.items())
            cells = [_cell(row.params.get(key, "")) for key in self.keys]
            cells += [str(sum(row.outcomes.values())), _figure(row), counts]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        return "\n".join([*lines, "", *(f"- {line}" for line in self.verdict.splitlines())]) + "\n"

    def csv(self) -> str:
        """One line a trial."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        figures = ("loss_over_chance", "first_gain", "last_gain", "first_bias")
        writer.writerow(
            ["trial", *self.keys, "seed", self.metric, "outcome", *figures, "seconds", "run_id"]
        )
        for judged in self.trials:
            result, diagnosis = judged.result, judged.diagnosis
            writer.writerow(
                [
                    result.name,
                    *(_cell(result.params.get(key, "")) for key in self.keys),
                    result.seed,
                    result.value(self.metric),
                    diagnosis.outcome,
                    *(getattr(diagnosis, figure) for figure in figures),
                    result.seconds,
                    judged.run_id,
                ]
            )
        return text.getvalue()

    def json(self) -> str:
        """Everything but the curves."""
        content = {
            "name": self.name,
            "metric": self.metric,
            "verdict": self.verdict.splitlines(),
            "rows": [{**asdict(row), "mean": row.mean, "spread": row.spread} for row in self.rows],
            "trials": [
                {**asdict(judged.result), **asdict(judged.diagnosis), "run_id": judged.run_id}
                for judged in self.trials
            ],
        }
        return json.dumps(_finite(content), indent=1, default=str) + "\n"


def compare(name: str, metric: str, judged: Sequence[Judged]) -> Comparison:
    """Groups the trials by their settings; the best mean first."""
    cells: dict[str, list[Judged]] = {}
    for one in judged:
        cells.setdefault(Trial(one.result.params, 0).cell, []).append(one)
    rows = []
    for group in cells.values():
        values = [one.result.value(metric) for one in group]
        outcomes = [one.diagnosis.outcome for one in group]
        rows.append(
            Row(
                group[0].result.params,
                tuple(value for value in values if not math.isnan(value)),
                {word: outcomes.count(word) for word in dict.fromkeys(outcomes)},
            )
        )
    rows.sort(key=lambda row: -math.inf if math.isnan(row.mean) else row.mean, reverse=True)
    return Comparison(name, metric, tuple(rows), tuple(judged))


def _figure(row: Row) -> str:
    if not row.values:
        return "-"
    return f"{row.mean:.3f}" + ("" if math.isnan(row.spread) else f" ± {row.spread:.3f}")


def _words(params: Mapping[str, Any]) -> str:
    short = (f"{key.rsplit('.', 1)[-1]} {_cell(value)}" for key, value in params.items())
    return ", ".join(short) or "the recipe"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
