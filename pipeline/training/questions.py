"""What a training step asks: the labels of the run, fewer of them, or more than are anywhere."""

import numpy as np
import torch
from torch import Tensor

from model.text import TextEncoder
from pipeline.data.taxonomy import label_text
from pipeline.errors import UserError
from pipeline.training.config import DistractorConfig, TrainMixConfig
from pipeline.training.labels import LabelSpace, ask_for_fewer


class Questions:
    """The labels of each step, a function of the seed and the step: the same on every worker.

    Frozen text is encoded here, once, and never in a step.

    Args:
        config: Of the run.
        labels: Of the run.
        encoder: Text encoder.
        device: Where the training runs.
    """

    def __init__(
        self, config: TrainMixConfig, labels: LabelSpace, encoder: TextEncoder, device: torch.device
    ) -> None:
        self._seed, self._train, self._device = config.run.seed, config.train, device
        self.text_KC = encoder.encode(labels.texts).to(device)
        """(K, C) float32, of all labels of the run."""
        self._lut = torch.from_numpy(labels.lut.astype(np.int64)).to(device)
        words = self._train.other.words if self._train.other.share else ()
        self._words = {word: encoder.encode([word]).to(device) for word in words}
        texts = distractor_texts(self._train.distractors, labels)
        self._distractor_MC = encoder.encode(texts).to(device) if texts else None

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The question of one step.

        Returns:
            text_KC: (K, C) float32.
            lut: (256,) int64, id in the run's taxonomy -> position in `text_KC`, or IGNORE.
        """
        other, count = self._train.other, self._train.distractors.count
        rng = np.random.Generator(np.random.PCG64([self._seed, step]))
        text, lut = self.text_KC, self._lut
        if other.share and rng.random() < other.share:
            kept, fewer, word = ask_for_fewer(len(text), other.drop, other.words, rng)
            text = torch.cat([text[torch.from_numpy(kept)], self._words[word]])
            lut = torch.from_numpy(fewer.astype(np.int64)).to(self._device)[lut]
        if self._distractor_MC is not None:
            # Behind the others, where no pixel points.
            drawn = rng.choice(len(self._distractor_MC), count, replace=False)
            text = torch.cat([text, self._distractor_MC[torch.from_numpy(drawn)]])
        return text, lut


def distractor_texts(config: DistractorConfig, labels: LabelSpace) -> tuple[str, ...]:
    """Texts of the classes that may be asked though no training picture shows them.

    Raises:
        UserError: There are fewer than one step wants, or one to leave out is no class.
    """
    for name in config.never:
        labels.taxonomy.id_of(name)
    if not config.count:
        return ()
    names = {*labels.taxonomy.classes} - {*labels.names, *config.never}
    if len(names) < config.count:
        raise UserError(
            f"train.distractors.count={config.count}: only {len(names)} classes are neither "
            "trained nor in train.distractors.never: lower it"
        )
    return tuple(label_text(name) for name in sorted(names))
