"""The label set of one training step, and how its targets and logits fit it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

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

    def chance_loss(self, datasets: Sequence[int]) -> float:
        """The loss of a network that cannot distinguish labels, as a mean over images.

        That is ln K, where K is how many labels compete in an image; `datasets` names its dataset.
        """
        if self.allowed_DK is None:
            return math.log(len(self.text_KC))
        competing = self.allowed_DK.sum(1).tolist()
        return sum(math.log(competing[dataset]) for dataset in datasets) / len(datasets)
