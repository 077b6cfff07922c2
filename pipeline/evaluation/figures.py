"""From counts to figures: means, and a row for each class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import harmonic_mean

import torch

from model.metrics import (
    ConfusionMatrix,
    foreground_background_iou,
    foreground_miou,
    merge_classes,
)
from pipeline.evaluation.plan import Part, ProtocolPlan
from pipeline.evaluation.scoring import Counts


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
        few_shot = plan.kind == "few-shot"
        parts[part.name] = _few_shot(found) if few_shot else _classes(plan, part, found)
        parts[part.name] |= {
            "images": float(len(found.scores)),
            "unreadable": float(len(found.unreadable)),
            "counted_px": float(sum(score.counted_px for score in found.scores)),
        }
        rows += _stratum_rows(part, found) if few_shot else _class_rows(part, found)
    return Figures(_summary(plan, parts), parts, rows)


def _summary(plan: ProtocolPlan, parts: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means of the figures over parts; for the held-out sets the harmonic mean too."""
    names = [key for key in next(iter(parts.values())) if key not in _COUNTS]
    summary = {}
    for name in names:
        values = [part[name] for part in parts.values() if not math.isnan(part[name])]
        summary[name] = sum(values) / len(values) if values else math.nan
    mious = [part["miou"] for part in parts.values()]
    if plan.kind == "held-out" and not any(map(math.isnan, mious)):
        summary["harmonic_miou"] = harmonic_mean(mious)
    summary["images"] = sum(part["images"] for part in parts.values())
    return summary


_COUNTS = frozenset({"images", "unreadable", "counted_px"})


def matrix_of(part: Part, counts: Counts) -> ConfusionMatrix:
    """The confusion matrix of a part, summed over strata; "none of the classes" comes last."""
    matrix = ConfusionMatrix(len(part.space.classes) + 1)
    matrix.merge(torch.from_numpy(counts.matrices.sum(0)))
    return matrix


def _classes(plan: ProtocolPlan, part: Part, counts: Counts) -> dict[str, float]:
    matrix = matrix_of(part, counts)
    classes = [i for i, name in enumerate(part.space.classes) if name not in plan.unscored]
    over = "all" if plan.mean_over == "all" else "target"
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
    return {
        "miou": foreground_miou(matrices),
        "fb_iou": foreground_background_iou(matrices),
    }


def _class_rows(part: Part, counts: Counts) -> list[ClassRow]:
    matrix = matrix_of(part, counts)
    return [
        _row(part.name, name, int(t), int(p), int(h))
        for name, t, p, h in zip(
            part.space.classes,
            matrix.counts.sum(1)[:-1],
            matrix.counts.sum(0)[:-1],
            matrix.counts.diagonal()[:-1],
            strict=True,
        )
    ]


def _stratum_rows(part: Part, counts: Counts) -> list[ClassRow]:
    """The foreground of each class of a fold."""
    return [
        _row(part.name, name, int(m[1].sum()), int(m[:, 1].sum()), int(m[1, 1]))
        for name, m in zip(part.strata, counts.matrices, strict=True)
    ]


def _row(part: str, name: str, target: int, predicted: int, hit: int) -> ClassRow:
    union = target + predicted - hit
    return ClassRow(part, name, hit / union if union else None, target, predicted, hit)


def miou_over(rows: Sequence[ClassRow], names: set[str], part: str) -> float | None:
    """Mean IoU of a part over some of its classes that have pixels; None without any."""
    values = [row.iou for row in rows if row.part == part and row.name in names and row.target_px]
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None
