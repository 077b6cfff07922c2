"""The label set of one training step, and how its targets and logits fit it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import LossKind
from model.loss import num_counted, segmentation_loss
from pipeline.data.taxonomy import IGNORE

NEVER = -1e4
"""Logit of a label that does not compete: its probability is 0 in float32."""


@dataclass(frozen=True)
class Question:
    """The label set of one step."""

    text_KC: Tensor
    """(K, C) float32."""
    lut: Tensor
    """(256,) int64, id in the run's taxonomy -> position in `text_KC`, or IGNORE; (D, 256) where
    the ids of each dataset mean something else."""
    allowed_DK: Tensor | None = None
    """(D, K) bool, which labels compete in an image of each dataset; None: all in all."""
    loss: LossKind = "softmax"
    """How the answers are judged."""
    weight_DK: Tensor | None = None
    """(D, K) float32, what a pixel of each label counts by in images of each dataset; None: 1."""
    source_K: Tensor | None = None
    """(K,) int64, each label's position in all texts that a step of the run may ask."""

    def target(self, label_BHW: Tensor, dataset_B: Tensor) -> Tensor:
        """Ids (uint8) as positions in `text_KC` (int64); `dataset_B` (int64) is each image's."""
        if self.lut.dim() == 1:
            return self.lut[label_BHW.long()]
        return self.lut[dataset_B[:, None, None], label_BHW.long()]

    def mask(self, logits_BKhw: Tensor, dataset_B: Tensor) -> Tensor:
        """Takes the labels that do not compete out of the logits; `dataset_B` as in `target`."""
        if self.allowed_DK is None:
            return logits_BKhw
        return logits_BKhw.masked_fill(~self.allowed_DK[dataset_B][:, :, None, None], NEVER)

    def loss_sum(self, logits_BKhw: Tensor, label_BHW: Tensor, dataset_B: Tensor) -> Tensor:
        """The loss summed over the pixels that `num_counted` counts: 0-d; see `segmentation_loss`.

        `label_BHW` holds positions in `text_KC`, as `target` gives them.
        """
        weight_BHW = None
        if self.weight_DK is not None:
            labelled = label_BHW.where(label_BHW != IGNORE, 0)
            weight_BHW = self.weight_DK[dataset_B[:, None, None], labelled]
        if self.allowed_DK is None:
            return self._loss_sum(logits_BKhw, label_BHW, weight_BHW)
        # The mean of a binary loss is over all labels of the step, and a GPU would have to tell the
        # host which image is of which dataset: there the labels that do not compete are masked.
        if self.loss != "softmax" or logits_BKhw.is_cuda:
            return self._loss_sum(self.mask(logits_BKhw, dataset_B), label_BHW, weight_BHW)
        # Elsewhere they are left out, since the loss is dear in labels and often few compete.
        total = logits_BKhw[:0].float().sum()  # 0, with a gradient also where nothing competes.
        for dataset in dataset_B.unique().tolist():
            images = (dataset_B == dataset).nonzero()[:, 0]
            columns = self.allowed_DK[dataset].nonzero()[:, 0]
            if not len(columns):
                continue
            position = torch.full((max(len(self.text_KC), IGNORE + 1),), IGNORE).to(columns)
            position[columns] = torch.arange(len(columns)).to(columns)
            total = total + self._loss_sum(
                logits_BKhw[images].index_select(1, columns),
                position[label_BHW[images].long()],
                None if weight_BHW is None else weight_BHW[images],
            )
        return total

    def _loss_sum(
        self, logits_BKhw: Tensor, label_BHW: Tensor, weight_BHW: Tensor | None
    ) -> Tensor:
        return segmentation_loss(
            logits_BKhw, label_BHW, IGNORE, kind=self.loss, weight_BHW=weight_BHW
        )[0]

    def num_counted(self, label_BHW: Tensor) -> Tensor:
        """How many pixels enter the loss: 0-d int64."""
        return num_counted(label_BHW, self.loss, IGNORE)

    def chance_loss(self, datasets: Sequence[int]) -> float:
        """The loss of a network that cannot distinguish labels, as a mean over images.

        Where K labels compete in an image that is ln K, or with a binary loss the entropy of a
        label that is right for one pixel of K; `datasets` names the dataset of each image.
        """
        asked = len(self.text_KC)
        if self.allowed_DK is None:
            return self._chance(asked, asked)
        competing = self.allowed_DK.sum(1).tolist()
        # Where a step may not ask for all labels, those of a dataset may all be left out, and its
        # pixels with them.
        losses = [self._chance(competing[d], asked) for d in datasets if competing[d]]
        return sum(losses) / len(losses) if losses else 0.0

    def _chance(self, competing: int, asked: int) -> float:
        if self.loss == "softmax" or competing == 1:
            return math.log(competing)
        rest = competing - 1
        # Labels that do not compete enter the mean with a loss of 0.
        return (math.log(competing) + rest * math.log(competing / rest)) / asked
