"""Confusion matrices and the scores that are read off them.

Shapes: K classes; predictions and targets of any one shape.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from model.errors import ModelError


class ConfusionMatrix:
    """Counts how often each class was predicted where each class is.

    Attributes:
        counts: (K, K) int64, [target, prediction], on `device`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)

    def update(self, pred: Any, target: Any) -> None:
        """Adds pixels. Targets outside 0..K-1 (the ignore value) do not count.

        Args:
            pred: class ids, a tensor or array of integers in 0..K-1 where the target counts.
            target: the same shape, integers.

        Raises:
            ModelError: the shapes differ, or a counted pixel has no class predicted.
        """
        pred, target = torch.as_tensor(pred), torch.as_tensor(target)
        if pred.shape != target.shape:
            raise ModelError(
                f"metrics: prediction {tuple(pred.shape)} against target {tuple(target.shape)}: "
                "must have the same shape: upsample the logits to the label's size first"
            )
        device = self.counts.device
        pred, target = pred.to(device, torch.int64), target.to(device, torch.int64)
        counted = (target >= 0) & (target < self.num_classes)
        pred, target = pred[counted], target[counted]
        if pred.numel() and (int(pred.min()) < 0 or int(pred.max()) >= self.num_classes):
            raise ModelError(
                f"metrics: predicted ids {int(pred.min())}..{int(pred.max())}: must lie in "
                f"0..{self.num_classes - 1} wherever the target counts: map them first"
            )
        cells = torch.bincount(target * self.num_classes + pred, minlength=self.counts.numel())
        self.counts += cells.view_as(self.counts)

    def merge(self, other: "ConfusionMatrix | Tensor") -> None:
        """Adds another matrix of the same classes (or its counts)."""
        counts = other.counts if isinstance(other, ConfusionMatrix) else other
        assert counts.shape == self.counts.shape
        self.counts += counts.to(self.counts.device)

    def iou_per_class(self) -> Tensor:
        """Intersection over union: (K,) float64, NaN where a class is in neither side."""
        counts = self.counts.double()
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        return torch.where(union > 0, hits / union, torch.nan)

    def miou(
        self,
        over: Literal["union", "target", "all"] = "union",
        classes: Sequence[int] | None = None,
    ) -> float:
        """The mean intersection over union.

        Args:
            over: which classes enter the mean: those predicted or present (`union`), those
                present in the targets (`target`), or every one, absent ones counting 0 (`all`).
            classes: restricts the mean to these ids.

        Returns:
            0..1, or NaN where no class enters.
        """
        iou = self.iou_per_class()
        if over == "all":
            iou = iou.nan_to_num(0.0)
        elif over == "target":
            iou = torch.where(self.counts.sum(1) > 0, iou, torch.nan)
        if classes is not None:
            iou = iou[list(classes)]
        return float(iou.nanmean())

    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; NaN where none was counted."""
        total = float(self.counts.sum())
        return float(self.counts.diagonal().sum()) / total if total else float("nan")


def foreground_miou(counts_S22: Tensor) -> float:
    """The mean over classes of the foreground's intersection over union, as HSNet defines it.

    0..1; a class that is on neither side counts 0. NaN without classes.

    Args:
        counts_S22: (S, 2, 2) int64, for each class [target, prediction] with 1 for its own pixels.
    """
    hits, unions = _hits_and_unions(counts_S22)
    return float((hits[:, 1] / unions[:, 1].clamp_min(1)).mean())


def foreground_background_iou(counts_S22: Tensor) -> float:
    """FB-IoU: intersections and unions summed over classes, then the mean of the two sides.

    0..1; NaN without pixels. The counts are those of `foreground_miou`.
    """
    hits, unions = (side.sum(0) for side in _hits_and_unions(counts_S22))
    return float((hits / unions.clamp_min(1)).mean()) if bool(unions.sum()) else float("nan")


def _hits_and_unions(counts_S22: Tensor) -> tuple[Tensor, Tensor]:
    """Two (S, 2) float64: intersections and unions of background and foreground."""
    counts = counts_S22.double()
    hits = counts.diagonal(dim1=1, dim2=2)
    return hits, counts.sum(1) + counts.sum(2) - hits


def merge_classes(counts_KK: Tensor, groups: Sequence[int]) -> Tensor:
    """The confusion matrix (G, G) int64 after classes are declared equal.

    Args:
        counts_KK: (K, K) int64, [target, prediction].
        groups: K numbers; classes with the same number become one, numbered 0..G-1.
    """
    index = torch.as_tensor(list(groups), device=counts_KK.device)
    size = int(index.max()) + 1
    merged = counts_KK.new_zeros((size, counts_KK.shape[1])).index_add_(0, index, counts_KK)
    return merged.new_zeros((size, size)).index_add_(1, index, merged)
