"""One HTML page of an evaluation: figures, the papers' rows, and its best and worst images."""

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.figures import COUNTS
from pipeline.evaluation.items import Item
from pipeline.evaluation.overlay import ComparedImage, draw
from pipeline.evaluation.plan import Part
from pipeline.evaluation.report import TITLES, EvaluationReport
from pipeline.evaluation.scoring import ItemScore
from pipeline.evaluation.views import network_input

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --soft: #6b7078; --line: #ddd;
        --note: #fff4d6; --edge: #d9a400; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --ink: #e8e6e1; --soft: #9aa0a8;
        --line: #34383e; --note: #3a3320; --edge: #d9a400; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px;
       background: var(--ground); color: var(--ink); padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; border: 1px solid var(--line); background: #fff; }
summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
.warning { background: var(--note); padding: .6em 1em; border-left: 4px solid var(--edge); }
"""

RUN_PLACE = "<!-- the run -->"
"""Where `link_run` writes the MLflow run, which is known after the page is written."""


def write_page(
    report: EvaluationReport,
    examples: Callable[[Sequence[tuple[int, int]]], list[Any]],
    folder: Path,
) -> None:
    """Writes page.html and the images that it shows.

    `examples` gives item, target and prediction of each (number of a part, position of an image).
    """
    sections = []
    for number, part in enumerate(report.plan.parts):
        worst, best = extremes(report.counts[part.name].scores, report.config.examples)
        for kind, scores in (("best", best), ("worst", worst)):
            if not scores:
                continue
            # One file's images at a time: full-size images of a whole evaluation fill a memory.
            answers = examples([(number, score.position) for score in scores])
            pairs = zip(scores, answers, strict=True)
            rows = [_row(part, score, answer) for score, answer in pairs]
            name = f"{part.name}-{kind}.png".replace(os.sep, "_")
            draw(rows, folder / name)
            sections.append(
                f"<h2>{html.escape(part.name)}: {kind} images</h2>\n"
                f'<img src="{html.escape(name)}" alt="{kind} images of {html.escape(part.name)}">'
            )
    parts, published = report.figures.parts.values(), report.published_rows()
    names = [name for name in TITLES if any(name in part for part in parts)]
    heads = [TITLES[name] + ("" if name in COUNTS else " (%)") for name in names]
    body = [
        f"<h1>{html.escape(report.config.protocol)}</h1>",
        f"<p>Checkpoint <code>{html.escape(report.config.checkpoint)}</code>, "
        f"other: {html.escape(str(report.to_dict()['other']))}, split {report.config.split}; "
        f"images were seen {html.escape(report.seen())}.</p>",
        RUN_PLACE,
        *_warnings(report),
        _table(["", *heads], report.figure_rows(names)),
        f"<h2>Published (%)</h2>{_table(published[0], published[1:])}" if published else "",
        *sections,
        "<h2>By class</h2>",
        *(_classes(report, part.name) for part in report.plan.parts),
        '<h2>Confusion</h2>\n<img src="confusion.png" alt="confusion matrices">',
    ]
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(report.config.protocol)}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(body) + "</body></html>\n"
    )
    (folder / "page.html").write_text(text, encoding="utf-8")


def link_run(folder: Path, hint: str) -> None:
    """Writes into the page which MLflow run has the figures: its address, or how to open it."""
    path = folder / "page.html"
    if not path.is_file():  # The behaviours have none.
        return
    shown = html.escape(hint)
    if hint.startswith(("http://", "https://")):
        shown = f'<a href="{shown}">{shown}</a>'
    else:
        shown = f"<code>{shown}</code>"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(RUN_PLACE, f"<p>MLflow run: {shown}</p>", 1), encoding="utf-8")


def _classes(report: EvaluationReport, part: str) -> str:
    """The classes of a part that its labels show, largest first, in a table that unfolds."""
    rows = [row for row in report.figures.classes if row.part == part and row.target_px]
    total = sum(row.target_px for row in rows) or 1
    seen = report.leak.seen_classes.get(part, ())
    cells = [
        [
            row.name,
            "-" if row.iou is None else f"{100 * row.iou:.2f}",
            f"{100 * row.target_px / total:.2f}",
            f"{100 * row.hit_px / row.target_px:.2f}",
            ("yes" if row.name in seen else "no") if report.leak.known else "unknown",
        ]
        for row in sorted(rows, key=lambda row: -row.target_px)
    ]
    head = ["class", "IoU (%)", "share of pixels (%)", "found (%)", "seen in training"]
    return (
        f"<details><summary>{html.escape(part)}: {len(rows)} classes</summary>"
        f"{_table(head, cells)}</details>"
    )


def extremes(scores: Sequence[ItemScore], count: int) -> tuple[list[ItemScore], list[ItemScore]]:
    """The worst and the best images by their own mIoU; none is in both."""
    ranked = sorted((s for s in scores if s.miou is not None), key=lambda s: (s.miou, s.position))
    count = min(count, len(ranked) // 2)
    return ranked[:count], ranked[len(ranked) - count :][::-1]


def _row(part: Part, score: ItemScore, answer: tuple[Item, Any, Any]) -> ComparedImage:
    space = part.space
    item, target, prediction = answer
    image = item.image
    if image.shape[:2] != target.shape:  # squashed
        image = network_input(image, part.geometry)
    labels = space.classes if space.rest is not None else (*space.classes, "(none of them)")
    if item.texts:
        labels = (space.classes[0], item.texts[-1])
    # Colours are few: only labels that are in the image get one.
    shown = np.union1d(np.unique(target[target < len(labels)]), np.unique(prediction)).astype(int)
    place = np.full(max(256, len(labels) + 1), IGNORE, np.int64)
    place[shown] = np.arange(len(shown))
    target = np.where(target < len(labels), target, len(place) - 1)
    named = tuple(labels[number] for number in shown)
    title = f"{score.key.rpartition('/')[2]}: {100 * (score.miou or 0):.1f} %"
    has_none = space.rest is None and bool((prediction == space.none).any())
    return ComparedImage(title, image, place[target], place[prediction], named, has_other=has_none)


def _warnings(report: EvaluationReport) -> list[str]:
    lines = [*report.leak.reasons, *report.plan.notes, *report.remarks]
    if report.leak.zero_shot != "yes":
        lines.insert(0, f"Zero-shot: {report.leak.zero_shot}.")
    if not lines:
        return []
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return [f'<div class="warning"><ul>{items}</ul></div>']


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{titles}</tr>{body}</table>"
