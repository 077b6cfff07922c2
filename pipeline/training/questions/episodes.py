"""Label sets of few-shot pairs: each image is scored against its own class and "others".

The run's labels are "others" and the names of all classes that it trains on, up to 520. A step asks
for those of its own images, and in an image only "others" and its class compete, which is the
reference's question of two texts for each image. The names are asked as the benchmark writes them
("ac_wall", "diningtable"), as in the reference and in the evaluation.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from model.config import LossKind
from model.text import TextEncoder
from pipeline.data.datasets.few_shot.training import OTHERS, class_of
from pipeline.data.ingest.mixture import Row
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, Taxonomy
from pipeline.errors import UserError
from pipeline.training.config import TrainConfig
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.questions.question import Question


def episode_labels(manifests: Iterable[Manifest], train: TrainConfig) -> LabelSpace | None:
    """Makes the label space of a run on few-shot pairs; None where the shards hold none.

    Args:
        manifests: Manifests of the datasets of the mixture, in its order.
        train: The training settings of the run.

    Raises:
        UserError: Other shards are among them, or a setting does not go with them.
    """
    manifests = list(manifests)
    names = [name for manifest in manifests if (name := class_of(manifest))]
    if not names:
        return None
    if len(names) < len(manifests):
        other = next(manifest.dataset for manifest in manifests if not class_of(manifest))
        raise UserError(
            f"data.shards: {other} is no few-shot benchmark, but {manifests[0].dataset} or others "
            "are: they cannot be trained together: leave one of them out with data.weights"
        )
    if train.label_sets != "own":
        raise UserError(
            f"train.label_sets={train.label_sets}: must be own for few-shot pairs, whose pictures "
            "tell their own class from all others: set it"
        )
    if train.held_out:
        raise UserError(
            f"train.held_out={list(train.held_out)}: has no meaning with few-shot pairs: use "
            "train.test_fold"
        )
    extras = {
        "other.share": train.other.share,
        "distractors.count": train.distractors.count,
        "text_noise": train.text_noise,
    }
    for key, value in extras.items():
        if value:
            raise UserError(
                f"train.{key}={value}: has no meaning with few-shot pairs: leave it out"
            )
    if train.text != "frozen":
        raise UserError(
            f"train.text={train.text}: has no meaning with few-shot pairs: set it to frozen"
        )
    if min(len(names), train.batch_size) >= IGNORE:
        raise UserError(
            f"train.batch_size={train.batch_size}: must be at most {IGNORE - 1} with so many "
            "few-shot classes: lower it"
        )
    asked = (OTHERS, *names)
    lut = np.arange(256, dtype=np.uint8)
    return LabelSpace(asked, lut, Taxonomy("few-shot", asked), verbatim=True)


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
