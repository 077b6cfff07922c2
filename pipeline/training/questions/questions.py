"""Label sets of training steps: the labels of the run, fewer of them, or extra negatives."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.config import LossKind
from model.label_twins import label_twins
from model.text import TextEncoder
from pipeline.data.ingest.mixture import Row
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.labels import LabelSpace, ask_for_fewer
from pipeline.training.questions.question import Question
from pipeline.training.questions.words import asked_texts, distractor_texts, words_for_other

logger = logging.getLogger(__name__)


class Questions:
    """The label set of each step, a function of seed and step, so the same on every worker.

    Frozen text is encoded here, once, and never in a step.

    Args:
        own: (K,) bool by dataset, in the order of the mixture: the labels that it shows. Used
            where `train.label_sets` is `own`.
        weights: (K,) float32 by dataset, what a pixel of each label counts by; None: 1.
    """

    def __init__(
        self,
        config: TrainMixConfig,
        labels: LabelSpace,
        encoder: TextEncoder,
        device: torch.device,
        own: Mapping[str, np.ndarray] | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._seed, self._train, self._device = config.run.seed, config.train, device
        self._loss: LossKind = config.loss
        self.text_KC = encoder.encode(labels.texts).to(device)
        """(K, C) float32, text vectors of all labels of the run."""
        for line in twin_warnings(labels.texts, self.text_KC.cpu().numpy()):
            logger.warning(line)
        self._lut = torch.from_numpy(labels.lut.astype(np.int64)).to(device)
        self._other_words = words_for_other(self._train.other, labels)
        distractors = distractor_texts(self._train.distractors, labels)
        self.texts = asked_texts(self._train, labels)
        """All texts that a step may ask: the labels, words for "other", distractors."""
        parts = [self.text_KC, *(encoder.encode([word]).to(device) for word in self._other_words)]
        parts += [encoder.encode(distractors).to(device)] if distractors else []
        self._all_NC = torch.cat(parts)
        self._own = dict(own or {}) if self._train.label_sets == "own" else {}
        self._allowed_DK = (
            torch.from_numpy(np.stack(list(self._own.values()))).to(device) if self._own else None
        )
        self._weight_DK = (
            torch.from_numpy(np.stack(list(weights.values()))).to(device) if weights else None
        )
        self._num_distractors = len(distractors)
        self._labels = np.arange(len(labels))
        self._labels_K = torch.from_numpy(self._labels).to(device)
        if self._train.text_noise:
            differences = self._all_NC - self._all_NC.mean(0)
            # Normal numbers times these have a mean squared length of 1.
            self._differences_NC = differences / differences.norm().clamp_min(1e-6)

    def at(self, step: int, rows: Sequence[Row] = ()) -> Question:
        """The labels asked in one step; `rows` is ignored here."""
        other, count = self._train.other, self._train.distractors.count
        rng = np.random.Generator(np.random.PCG64([self._seed, step]))
        num_labels, lut, allowed = len(self.text_KC), self._lut, self._allowed_DK
        weight, asked = self._weight_DK, self._labels
        if other.share and rng.random() < other.share:
            kept, fewer, word = ask_for_fewer(num_labels, other.drop, self._other_words, rng)
            positions = torch.from_numpy(kept).to(self._device)
            asked = np.append(kept, num_labels + self._other_words.index(word))
            lut = torch.from_numpy(fewer.astype(np.int64)).to(self._device)[lut]
            allowed = _widened(allowed[:, positions], 1) if allowed is not None else None
            weight = _widened(weight[:, positions], 1) if weight is not None else None
        if self._num_distractors:
            # Behind the others, where no pixel points.
            drawn = rng.choice(self._num_distractors, count, replace=False)
            asked = np.append(asked, num_labels + len(self._other_words) + drawn)
            allowed = _widened(allowed, count) if allowed is not None else None
            weight = _widened(weight, count) if weight is not None else None
        if asked is self._labels:
            text, source_K = self.text_KC, self._labels_K
        else:
            source_K = torch.from_numpy(asked).to(self._device)
            text = self._all_NC[source_K]
        if self._train.text_noise:
            # Another word for a thing differs from its name as words differ, and a pixel's vector
            # that tells the names apart by a hair would tell the two apart too.
            shape = (len(text), len(self._differences_NC))
            numbers = torch.from_numpy(rng.standard_normal(shape, np.float32)).to(self._device)
            noise = numbers @ self._differences_NC
            text = functional.normalize(text + self._train.text_noise * noise, dim=-1)
        return Question(text, lut, allowed, self._loss, weight, source_K)

    def labels_of(self, dataset: str) -> Tensor:
        """(L,) int64, positions of the labels that compete in images of one dataset."""
        own = self._own.get(dataset)
        if own is None:
            return torch.arange(len(self.text_KC), device=self._device)
        return torch.from_numpy(np.flatnonzero(own)).to(self._device)


def twin_warnings(texts: Sequence[str], text_KC: np.ndarray) -> list[str]:
    """What to say of labels that are the same to the text encoder, which train against each other.

    Prediction and evaluation refuse such labels.
    """
    return [
        f"labels: {texts[first]!r} and {texts[later]!r} are the same to the text encoder, so that "
        "they train against each other: make them one class, or name them by other words"
        for first, later in label_twins(text_KC)
    ]


def _widened(given_DK: Tensor, count: int) -> Tensor:
    """Adds labels that compete everywhere, or whose pixels count by 1."""
    return torch.cat([given_DK, given_DK.new_ones(len(given_DK), count)], dim=1)
