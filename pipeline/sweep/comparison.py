"""The comparison of a sweep's trials: a table by combination, a verdict, and what it rests on."""

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from pipeline.sweep.diagnosis import Diagnosis, History
from pipeline.sweep.results import Result
from pipeline.sweep.trials import cell, short_names


@dataclass(frozen=True)
class Row:
    """One combination of settings, over its repetitions."""

    params: dict[str, Any]
    by_repetition: dict[str, float]
    """The metric of each finished trial, by what distinguishes it within the row."""
    missing: tuple[str, ...]
    """Repetitions that the sweep has and this row has no finished trial of."""
    outcomes: dict[str, int]
    """How many trials came to what."""
    names: tuple[str, ...]
    """Counts of the trials."""

    @property
    def values(self) -> list[float]:
        """The metric of each trial that finished."""
        return list(self.by_repetition.values())

    @property
    def count(self) -> str:
        """How many repetitions the mean is over, and of how many if some are missing."""
        finished = len(self.by_repetition)
        return f"{finished} of {finished + len(self.missing)}" if self.missing else str(finished)

    @property
    def mean(self) -> float:
        """Over the repetitions; NaN without a value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the repetitions; NaN with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Judged:
    """One trial with its judgement and its curves."""

    result: Result
    diagnosis: Diagnosis
    histories: Mapping[str, History]
    run_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves."""
        return asdict(self.result) | asdict(self.diagnosis) | {"run_id": self.run_id}


@dataclass(frozen=True)
class Comparison:
    """All trials of a sweep, judged."""

    name: str
    metric: str
    rows: tuple[Row, ...]
    """The best first; those with all repetitions before those without."""
    trials: tuple[Judged, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that are varied."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.params))

    @property
    def short(self) -> dict[str, str]:
        """Their short names, those of `average_over` included."""
        return short_names(key for one in self.trials for key in one.result.params)

    def words(self, params: Mapping[str, Any]) -> str:
        """Settings in words."""
        short = self.short
        return ", ".join(f"{short[k]} {cell(v)}" for k, v in params.items()) or "the recipe"

    @property
    def verdict(self) -> str:
        """The outcome in words, a sentence a line."""
        lines = [self._best(), *self._incomplete(), *self._collapses()]
        failed = [j for j in self.trials if j.diagnosis.outcome == "failed"]
        if failed:
            first = failed[0]
            lines.append(
                f"{len(failed)} of {len(self.trials)} trials failed; the first, "
                f"{first.result.name}: {first.diagnosis.words}. The same command tries them again."
            )
        return "\n".join(lines)

    def _best(self) -> str:
        complete = [row for row in self.rows if not row.missing]
        ranked = complete or [row for row in self.rows if row.values]
        if not ranked:
            return f"No trial finished with a {self.metric}."
        best = ranked[0]
        whole = "" if complete else " of those with some repetitions"
        tied = [row for row in ranked if math.isclose(row.mean, best.mean, abs_tol=1e-9)]
        if len(tied) > 1:
            words = "; ".join(self.words(row.params) for row in tied)
            return f"Best {self.metric}{whole}: {best.mean:.3f}, a tie of {len(tied)}: {words}."
        text = f"Best {self.metric}{whole}: {_figure(best)} with {self.words(best.params)}"
        if len(ranked) == 1:
            return text + "."
        second = ranked[1]
        return (
            f"{text}; next {_figure(second)} with {self.words(second.params)}. {_gap(best, second)}"
        )

    def _incomplete(self) -> list[str]:
        return [
            f"Incomplete, so ranked after the complete: {self.words(row.params)}: {row.count} "
            f"repetitions finished ({_counts(row)})."
            for row in self.rows
            if row.missing and row.values
        ]

    def _collapses(self) -> list[str]:
        collapsed = [one for one in self.trials if one.diagnosis.outcome == "collapsed"]
        lines = []
        for row in self.rows:
            if found := [one for one in collapsed if one.result.name in row.names]:
                lines.append(
                    f"Collapsed, {len(found)} of {len(row.names)}: {self.words(row.params)}: "
                    f"{found[0].diagnosis.words}."
                )
        return lines

    def _cells(self, row: Row) -> list[str]:
        settings = [cell(row.params.get(key, "")) for key in self.keys]
        return [*settings, row.count, _figure(row), _counts(row)]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(box=box.SIMPLE)
        for key in self.keys:
            table.add_column(self.short[key])
        for head in ("finished", self.metric, "outcome"):
            table.add_column(head, justify="right")
        for row in self.rows:
            table.add_row(*self._cells(row))
        return table

    def markdown(self) -> str:
        """Verdict and table, for MLflow's description of the run, which it shows the start of."""
        settings = [f"`{self.short[key]}`" for key in self.keys]
        heads = [*settings, "finished", f"`{self.metric}`", "outcome"]
        lines = [*(f"- {line}" for line in self.verdict.splitlines()), ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for row in self.rows:
            cells = [text.replace("|", "/") for text in self._cells(row)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """One line a trial."""
        figures = ("loss_over_chance", "first_gain", "last_gain", "first_bias")
        heads = ["trial", *self.short, "seed", self.metric, "outcome", *figures, "seconds"]
        text = io.StringIO()
        writer = csv.DictWriter(
            text, [*heads, "run_id"], extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        for judged in self.trials:
            result = judged.result
            settings = {key: cell(value) for key, value in result.params.items()}
            named = {"trial": result.name, self.metric: result.value(self.metric)}
            writer.writerow(judged.to_dict() | settings | named)
        return text.getvalue()

    def json(self) -> str:
        """Everything but the curves."""
        content = {
            "name": self.name,
            "metric": self.metric,
            "verdict": self.verdict.splitlines(),
            "rows": [{**asdict(row), "mean": row.mean, "spread": row.spread} for row in self.rows],
            "trials": [judged.to_dict() for judged in self.trials],
        }
        # JSON knows no NaN: null in its place.
        finite = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, indent=1) + "\n"


def compare(
    name: str, metric: str, judged: Sequence[Judged], average_over: Sequence[str] = ()
) -> Comparison:
    """Groups the trials by their settings; the best mean first.

    Only finished trials count: a failed one, or one that was stopped early, may have a figure too,
    of fewer steps. Settings whose repetitions have not all finished come after the others, since a
    mean over the easier folds, or the seeds that did not fail, is not the mean of all.
    The settings in `average_over` are repetitions, as the seed is.
    """
    groups: dict[str, dict[str, Judged]] = {}
    repetitions: dict[str, None] = {}
    for one in judged:
        settings = _text(_own(one, average_over))
        repeated = {k: v for k, v in one.result.params.items() if k in average_over}
        repetition = _text({**repeated, "seed": one.result.seed})
        groups.setdefault(settings, {})[repetition] = one
        repetitions[repetition] = None
    rows = []
    for group in groups.values():
        values = {
            key: one.result.value(metric)
            for key, one in group.items()
            if one.result.status == "finished" and not math.isnan(one.result.value(metric))
        }
        rows.append(
            Row(
                _own(next(iter(group.values())), average_over),
                values,
                tuple(key for key in repetitions if key not in values),
                dict(Counter(one.diagnosis.outcome for one in group.values())),
                tuple(one.result.name for one in group.values()),
            )
        )
    rows.sort(key=lambda row: (not row.missing, bool(row.values), row.mean), reverse=True)
    return Comparison(name, metric, tuple(rows), tuple(judged))


def _own(one: Judged, average_over: Sequence[str]) -> dict[str, Any]:
    """The settings of a trial that it shares with its repetitions."""
    return {k: v for k, v in one.result.params.items() if k not in average_over}


def _gap(best: Row, second: Row) -> str:
    """What the difference between two rows is worth."""
    # Repetitions are paired: what makes one fold or seed harder does so for both rows.
    shared = best.by_repetition.keys() & second.by_repetition.keys()
    gaps = [best.by_repetition[key] - second.by_repetition[key] for key in sorted(shared)]
    if len(gaps) < 2:
        return "One pair of trials says nothing about the spread: add seeds."
    from scipy import stats  # It takes seconds to load, and few sweeps have several seeds.

    mean, num = statistics.fmean(gaps), len(gaps)
    half = float(stats.t.ppf(0.975, num - 1)) * statistics.stdev(gaps) / math.sqrt(num)
    return (
        f"The difference, {mean:.3f}, is {'more' if mean > half else 'less'} than half its 95 % "
        f"interval ({half:.3f}, {num} pairs)."
    )


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _figure(row: Row) -> str:
    if not row.values:
        return "-"
    return f"{row.mean:.3f}" + ("" if math.isnan(row.spread) else f" ± {row.spread:.3f}")


def _counts(row: Row) -> str:
    return ", ".join(f"{count} {word}" for word, count in row.outcomes.items())
