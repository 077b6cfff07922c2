"""One HTML page of an evaluation: figures, the papers' rows, and its best and worst images."""

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.items import Item
from pipeline.evaluation.overlay import ComparedImage, draw
from pipeline.evaluation.plan import Part
from pipeline.evaluation.report import TITLES, EvaluationReport
from pipeline.evaluation.scoring import ItemScore
from pipeline.evaluation.views import network_input

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; color: #222;
       padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; border: 1px solid #ddd; }
.warning { background: #fff4d6; padding: .6em 1em; border-left: 4px solid #d9a400; }
"""


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
    body = [
        f"<h1>{html.escape(report.config.protocol)}</h1>",
        f"<p>Checkpoint <code>{html.escape(report.config.checkpoint)}</code>, "
        f"other: {html.escape(str(report.to_dict()['other']))}, split {report.config.split}.</p>",
        *_warnings(report),
        _table(["", *(TITLES[name] for name in names)], report.figure_rows(names)),
        f"<h2>Published</h2>{_table(published[0], published[1:])}" if published else "",
        '<h2>Confusion</h2>\n<img src="confusion.png" alt="confusion matrices">',
        *sections,
    ]
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(report.config.protocol)}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(body) + "</body></html>\n"
    )
    (folder / "page.html").write_text(text, encoding="utf-8")


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
    place = np.full(256, IGNORE, np.int64)
    place[shown] = np.arange(len(shown))
    named = tuple(labels[number] for number in shown)
    title = f"{score.key.rpartition('/')[2]}: {100 * (score.miou or 0):.1f}"
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
