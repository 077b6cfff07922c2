"""The files of an evaluation: report.json, per_class.csv, confusion.png, page.html, and a table.

Everything in report.json is plain JSON; figures lie between 0 and 1.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from rich import box
from rich.table import Table

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.figures import COUNTS, Figures, class_accuracy, miou_over
from pipeline.evaluation.leak import LeakReport
from pipeline.evaluation.plan import ProtocolPlan
from pipeline.evaluation.published import PublishedRow, published_rows
from pipeline.evaluation.scoring import Counts
from pipeline.inference.fonts import font_path, shown_name

MAX_CONFUSED = 40
"""Classes that the confusion image shows: those with the most pixels."""

TITLES = {
    "miou": "mIoU",
    "miou_all": "mIoU, all classes",
    "miou_merged": "mIoU, equal classes as one",
    "harmonic_miou": "harmonic mean of mIoU",
    "pixel_accuracy": "pixel accuracy",
    "fb_iou": "FB-IoU",
    "images": "images",
    "unreadable": "unreadable",
    "counted_px": "pixels",
}


@dataclass(frozen=True)
class EvaluationReport:
    """One finished evaluation."""

    config: EvaluateConfig
    plan: ProtocolPlan
    figures: Figures
    counts: dict[str, Counts]
    leak: LeakReport
    fingerprint: str
    checkpoint_fingerprint: str
    remarks: tuple[str, ...] = ()
    """What a reader of the figures should know beside the plan's departures."""

    def values(self) -> dict[str, float]:
        """All figures by name: `miou`, `fold0/miou`, `ade20k/pixel_accuracy`, ..."""
        flat = dict(self.figures.summary)
        for part, figures in self.figures.parts.items():
            flat |= {f"{part}/{name}": value for name, value in figures.items()}
        for part in self.figures.parts:
            means = {
                kind: value
                for kind, names in self._by_seen(part).items()
                if (value := miou_over(self.figures.classes, names, part)) is not None
            }
            flat |= {f"{part}/miou_{kind}_classes": value for kind, value in means.items()}
            if len(means) == 2:
                flat[f"{part}/miou_harmonic"] = harmonic_mean(means.values())
            accuracy = class_accuracy(self.figures.classes, part, self._rest_of(part))
            if self.plan.kind == "classes" and accuracy is not None:
                flat[f"{part}/class_accuracy"] = accuracy
        return {name: value for name, value in flat.items() if not math.isnan(value)}

    def policies(self) -> dict[str, str]:
        """How "other" was handled, by part."""
        return {part.name: part.space.policy for part in self.plan.parts}

    def seen(self) -> str:
        """How the network saw the images, in words."""
        return "; ".join(dict.fromkeys(str(part.geometry) for part in self.plan.parts))

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        policies = sorted(set(self.policies().values()))
        return {
            "protocol": self.config.protocol,
            "checkpoint": self.config.checkpoint,
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "evaluation_fingerprint": self.fingerprint,
            "split": self.config.split,
            "data": self.plan.data(),
            "other": policies[0] if len(policies) == 1 else self.policies(),
            "geometry": {part.name: vars(part.geometry) for part in self.plan.parts},
            "precision": self.config.precision,
            "figures": self.values(),
            "zero_shot": self.leak.zero_shot,
            "leak": vars(self.leak)
            | {"seen_classes": {part: list(seen) for part, seen in self.leak.seen_classes.items()}},
            "unseen_taken_for": self.taken_for(),
            "notes": [*self.plan.notes, *self.remarks],
            "published": [vars(row) for row in published_rows(self.config.protocol)],
            "unreadable": {k: list(map(list, c.unreadable)) for k, c in self.counts.items()},
        }

    def taken_for(self) -> dict[str, dict[str, list[str | float]]]:
        """For each unseen class, the seen one that gets most of its pixels, and their share."""
        found: dict[str, dict[str, list[str | float]]] = {}
        for part in self.plan.parts:
            kinds = self._by_seen(part.name)
            names = part.space.classes
            seen = [i for i, name in enumerate(names) if name in kinds.get("seen", ())]
            counts = self.counts[part.name].matrices.sum(0)
            for number, name in enumerate(names):
                total = int(counts[number].sum())
                if seen and total and name in kinds.get("unseen", ()):
                    nearest = max(seen, key=lambda i: counts[number, i])
                    share = round(float(counts[number, nearest]) / total, 4)
                    found.setdefault(part.name, {})[name] = [names[nearest], share]
        return found

    def per_class_csv(self) -> str:
        """One line for each class of each part."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        columns = ("part", "class", "iou", "target_px", "predicted_px", "hit_px")
        writer.writerow((*columns, "seen_in_training", "other"))
        policies = self.policies()
        for row in self.figures.classes:
            seen = row.name in self.leak.seen_classes.get(row.part, ())
            iou = "" if row.iou is None else repr(row.iou)
            flag = ("yes" if seen else "no") if self.leak.known else "unknown"
            if row.name in self._rest_of(row.part):
                flag = ""  # A background is neither.
            cells = (row.part, row.name, iou, row.target_px, row.predicted_px, row.hit_px)
            writer.writerow((*cells, flag, policies[row.part]))
        return buffer.getvalue()

    def figure_rows(self, names: Sequence[str]) -> list[list[str]]:
        """Rows of text for each part and for the means: the name, then the figures `names`."""
        rows = dict(self.figures.parts)
        summary = self.figures.summary
        if len(rows) > 1 or "harmonic_miou" in summary:
            rows["mean"] = summary
        if "harmonic_miou" in summary:
            rows["harmonic mean"] = {"miou": summary["harmonic_miou"]}
        return [[row, *(_cell(n, found.get(n)) for n in names)] for row, found in rows.items()]

    def published_rows(self) -> list[list[str]]:
        """Rows of text: a head, ours, and the papers' with their sources; empty without any."""
        rows = published_rows(self.config.protocol)
        if not rows:
            return []
        ours, deviations = self.values(), len(self.plan.notes)
        source = f"this evaluation{f'; {deviations} deviations, see notes' if deviations else ''}"
        columns = [name for name in ours if any(name in row.values for row in rows)]
        columns += sorted({n for row in rows for n in row.values} - set(columns))
        all_rows = [PublishedRow("ours", ours, source), *rows]
        return [["model", *columns, "source"]] + [
            [row.model, *(_cell("miou", row.values.get(n)) for n in columns), row.source]
            for row in all_rows
        ]

    def tables(self) -> Iterator[Table]:
        """Tables for the terminal: our figures by part, then the papers' beside ours."""
        names = self._columns()
        checkpoint = "/".join(self.config.checkpoint.rstrip("/").split("/")[-2:])
        title = f"{self.config.variant}: {checkpoint}"
        caption = f"other: {self.to_dict()['other']}   zero-shot: {self.leak.zero_shot}"
        caption = "\n".join((f"{caption}   {self.seen()}", *self.remarks))
        heads = [TITLES[n] + ("" if n in COUNTS else " %") for n in names]
        yield _table(title, ["", *heads], self.figure_rows(names), caption)
        if published := self.published_rows():
            yield _table("published, %", published[0], published[1:])

    def _columns(self) -> list[str]:
        """Names of the figures that the terminal shows, without repetitions."""
        parts = list(self.figures.parts.values())
        hidden = {"counted_px", "miou_all"}
        if not any(part.get("unreadable") for part in parts):
            hidden.add("unreadable")
        if all(part.get("miou_merged") == part["miou"] for part in parts):
            hidden.add("miou_merged")
        return [n for n in TITLES if n not in hidden and any(n in part for part in parts)]

    def write(self, folder: Path) -> None:
        """Writes all files but the page's images."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "per_class.csv").write_text(self.per_class_csv(), encoding="utf-8")
        self._draw_confusion(folder / "confusion.png")

    def _by_seen(self, part: str) -> dict[str, set[str]]:
        if not self.leak.known:
            return {}
        names = {row.name for row in self.figures.classes if row.part == part}
        names -= self._rest_of(part)
        seen = set(self.leak.seen_classes.get(part, ()))
        # Where all classes are on one side, the mean over them says nothing new.
        return {"seen": seen, "unseen": names - seen} if seen and names - seen else {}

    def _rest_of(self, part: str) -> set[str]:
        """The class that means "none of the others", where a part has one; few-shot rows do not."""
        (space,) = (one.space for one in self.plan.parts if one.name == part)
        return set() if space.rest is None else {space.classes[space.rest]}

    def _draw_confusion(self, path: Path) -> None:
        """Draws the share of each class's pixels (rows) that was predicted as a class (columns)."""
        parts = self.plan.parts
        figure = Figure(figsize=(9, 8.2 * len(parts)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
        for axis, part in zip(axes, parts, strict=True):
            counts = self.counts[part.name].matrices.sum(0)
            every = [*part.space.classes, "(none of them)"]
            names = [shown_name(name, number) for number, name in enumerate(every)]
            largest = np.argsort(-counts.sum(1), kind="stable")[:MAX_CONFUSED]
            shown = np.sort(largest[counts.sum(1)[largest] > 0])
            columns = np.append(shown, len(names) - 1) if counts[:, -1].any() else shown
            share = counts[np.ix_(shown, columns)] / counts.sum(1)[shown, None]
            image = axis.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axis.set_xticks(range(len(columns)), [names[i] for i in columns], rotation=90)
            axis.set_yticks(range(len(shown)), [names[i] for i in shown])
            for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
                label.set_fontproperties(FontProperties(fname=font_path(label.get_text()), size=7))
            axis.set_xlabel("predicted")
            axis.set_ylabel("labelled")
            left = int((counts.sum(1) > 0).sum()) - len(shown)
            more = f", the {len(shown)} largest classes of {left + len(shown)}" if left else ""
            axis.set_title(f"{part.name}: share of a class's pixels{more}", fontsize=10)
            figure.colorbar(image, ax=axis, shrink=0.6)
        figure.savefig(path)


def _cell(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if name in COUNTS:
        return f"{value:.0f}"
    return f"{100 * value:.2f}"


def _table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = ""
) -> Table:
    table = Table(title=title, caption=caption or None, box=box.SIMPLE_HEAD)
    for name in head:
        words = name in ("", "model", "source")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
