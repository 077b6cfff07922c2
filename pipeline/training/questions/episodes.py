"""Label sets of few-shot pairs: each image is scored against its own class and "others".

The run's labels are "others" and the names of all classes that it trains on, up to 520. A step asks
for those of its own images, and in an image only "others" and its class compete, which is the
reference's question of two texts for each image. The names are asked as the benchmark writes them
("ac_wall", "diningtable"), as in the reference and in the evaluation.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.config import LossKind
from model.text import TextEncoder
from pipeline.data.ingest.mixture import Row
from pipeline.data.taxonomy import IGNORE
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.questions.question import Question


class EpisodeQuestions:
    """The label sets of the steps of a few-shot run, with the interface of `Questions`."""

    def __init__(
        self,
        labels: LabelSpace,
        encoder: TextEncoder,
        device: torch.device,
        loss: LossKind = "softmax",
    ) -> None:
        self.text_KC = encoder.encode(labels.texts).to(device)
        """(K, C) float32, "others" first."""
        self._device = device
        self._loss: LossKind = loss

    def at(self, step: int, rows: Sequence[Row]) -> Question:
        """The label set of one step: "others", and the classes of its rows."""
        num_datasets = len(self.text_KC) - 1
        present = sorted({row.dataset for row in rows})
        lut = np.full((num_datasets, 256), IGNORE, np.int64)
        allowed = np.zeros((num_datasets, 1 + len(present)), bool)
        for position, dataset in enumerate(present, 1):
            lut[dataset, :2] = (0, position)
            allowed[dataset, [0, position]] = True
        asked = torch.tensor([0, *(1 + dataset for dataset in present)], device=self._device)
        return Question(
            self.text_KC[asked],
            torch.from_numpy(lut).to(self._device),
            torch.from_numpy(allowed).to(self._device),
            self._loss,
        )

    def labels_of(self, dataset: str) -> Tensor:
        """Never called, since few-shot pairs have no validation split."""
        raise NotImplementedError
