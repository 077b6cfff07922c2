"""From counts to figures: means, and a row for each class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import harmonic_mean

import numpy as np
import torch

from model.metrics import ConfusionMatrix, foreground_background_iou, foreground_miou, merge_classes
from pipeline.evaluation.plan import Part, ProtocolPlan
from pipeline.evaluation.scoring import Counts

COUNTS = frozenset({"images", "unreadable", "counted_px"})
"""Names of the figures that are numbers of images or pixels."""


@dataclass(frozen=True)
class ClassRow:
    """One class of one part."""

    part: str
    name: str
    iou: float | None
    """None where the class is neither there nor predicted."""
    target_px: int
    predicted_px: int
    hit_px: int


@dataclass
class Figures:
    """All numbers of an evaluation."""

    summary: dict[str, float]
    """The protocol's own figures, 0..1: `miou`, `pixel_accuracy`, `fb_iou`, ..."""
    parts: dict[str, dict[str, float]]
    """The same figures by dataset or fold, with the numbers of images and counted pixels."""
    classes: list[ClassRow] = field(default_factory=list)


def figures_of(plan: ProtocolPlan, counts: dict[str, Counts]) -> Figures:
    """Computes the figures of a complete evaluation."""
    parts: dict[str, dict[str, float]] = {}
    rows: list[ClassRow] = []
    for part in plan.parts:
        found = counts[part.name]
        if plan.kind == "few-shot":
            figures = _few_shot(found)
            # The foreground of each class of the fold.
            strata = zip(part.strata, found.matrices, strict=True)
            rows += [_row(part, name, matrix, 1) for name, matrix in strata]
        else:
            # "None of the classes", which comes last, gets no row.
            whole = found.matrices.sum(0)
            figures = _classes(plan, part, whole)
            rows += [_row(part, name, whole, i) for i, name in enumerate(part.space.classes)]
        parts[part.name] = figures | {
            "images": float(len(found.scores)),
            "unreadable": float(len(found.unreadable)),
            "counted_px": float(sum(score.counted_px for score in found.scores)),
        }
    return Figures(_summary(plan, parts), parts, rows)


def _summary(plan: ProtocolPlan, parts: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means of the figures over parts; for the held-out sets the harmonic mean too."""
    names = [key for key in next(iter(parts.values())) if key not in COUNTS]
    summary = {}
    for name in names:
        values = [part[name] for part in parts.values() if not math.isnan(part[name])]
        summary[name] = sum(values) / len(values) if values else math.nan
    mious = [part["miou"] for part in parts.values()]
    if plan.kind == "held-out" and not any(map(math.isnan, mious)):
        summary["harmonic_miou"] = harmonic_mean(mious)
    summary["images"] = sum(part["images"] for part in parts.values())
    return summary


def _classes(plan: ProtocolPlan, part: Part, whole: np.ndarray) -> dict[str, float]:
    matrix = ConfusionMatrix(len(whole))
    matrix.merge(torch.from_numpy(whole))
    classes = [i for i, name in enumerate(part.space.classes) if name not in plan.unscored]
    over = plan.mean_over
    figures = {
        "miou": matrix.miou(over=over, classes=classes),
        "miou_all": matrix.miou(over="all", classes=classes),
        "pixel_accuracy": matrix.pixel_accuracy(),
    }
    if plan.equal_classes:
        same = plan.equal_classes.get(part.name) or tuple(classes)
        groups = (*same, max(same) + 1)
        merged = ConfusionMatrix(max(groups) + 1)
        merged.merge(merge_classes(matrix.counts, groups))
        figures["miou_merged"] = merged.miou(over=over, classes=range(max(same) + 1))
    return figures


def _few_shot(counts: Counts) -> dict[str, float]:
    matrices = torch.from_numpy(counts.matrices[:, :2, :2])
    return {"miou": foreground_miou(matrices), "fb_iou": foreground_background_iou(matrices)}


def _row(part: Part, name: str, matrix: np.ndarray, number: int) -> ClassRow:
    """The row of the class that has a number in a confusion matrix."""
    target, predicted = int(matrix[number].sum()), int(matrix[:, number].sum())
    hit = int(matrix[number, number])
    union = target + predicted - hit
    return ClassRow(part.name, name, hit / union if union else None, target, predicted, hit)


def miou_over(rows: Sequence[ClassRow], names: set[str], part: str) -> float | None:
    """Mean IoU of a part over some of its classes that have pixels; None without any."""
    values = [row.iou for row in rows if row.part == part and row.name in names and row.target_px]
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def class_accuracy(rows: Sequence[ClassRow], part: str, without: set[str]) -> float | None:
    """Mean over a part's classes of the share of their pixels that they get; None without any."""
    found = [row for row in rows if row.part == part and row.name not in without and row.target_px]
    return sum(row.hit_px / row.target_px for row in found) / len(found) if found else None
