"""The label vectors of a step: the frozen encoder's, or made anew by a tower that is trained.

A tower that is trained (`train.text`) encodes the labels of a step once, however many passes the
step has, and is no part of what the workers exchange in the backward pass: they add up the
gradients of the label vectors, a few hundred rows, and each takes them through its own tower. What
that holds grows with the labels of a step, which `train.labels_per_step` bounds, and not with its
images.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from model.lseg import LSeg
from model.text import tokens_of
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.question import Question
from pipeline.training.questions.questions import Questions


class StepText:
    """The label vectors of the steps of one worker.

    Args:
        config: The run.
        lseg: The network, with the tower if that is trained.
        questions: The label sets of the steps.
        amp: Context of the tower's forward pass.
    """

    def __init__(
        self,
        config: TrainMixConfig,
        lseg: LSeg,
        questions: Questions | EpisodeQuestions,
        amp: Any,
    ) -> None:
        self._tower, self._questions, self._amp = lseg.text_tower, questions, amp
        self._made = self._leaf = torch.empty(0)
        if self._tower is not None:
            assert isinstance(questions, Questions)
            tokens_NSL = tokens_of(config.model.text, questions.texts)
            self._tokens_NSL = tokens_NSL.to(lseg.mean_C.device)

    def of(self, question: Question) -> Tensor:
        """The vectors of a question's labels: (K, C), for all passes of a step.

        With a tower they collect the gradients of the passes, for `backward`.
        """
        if self._tower is None:
            return question.text_KC
        with self._amp:
            self._made = self._tower(self._tokens_NSL[question.source_K])
        # Nothing of a tower trains whose rate has the factor 0.
        self._leaf = self._made.detach().requires_grad_(self._made.requires_grad)
        return self._leaf

    def backward(self) -> None:
        """Takes the gradients that the vectors have collected through the tower, if it is trained.

        As for all other weights, the gradients are the mean over all workers.
        """
        if self._tower is None or not self._made.requires_grad:
            return
        grad = self._leaf.grad if self._leaf.grad is not None else torch.zeros_like(self._leaf)
        self._mean(grad)
        self._made.backward(grad)
        # The same on every worker but for the rounding of other devices, with which the towers
        # would drift apart.
        for weight in self._tower.parameters():
            if weight.grad is not None:
                self._mean(weight.grad)

    def of_all(self, lseg: LSeg) -> Tensor:
        """The vectors of the run's labels for a network of the run: (K, C), without a gradient."""
        if lseg.text_tower is None:
            return self._questions.text_KC
        tokens_KSL = self._tokens_NSL[: len(self._questions.text_KC)]
        with self._amp:
            return lseg.text_tower.encode(tokens_KSL)

    @staticmethod
    def _mean(grad: Tensor) -> None:
        if dist.get_world_size() > 1:
            dist.all_reduce(grad)
            grad /= dist.get_world_size()
