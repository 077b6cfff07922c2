"""Fewer labels in a step than the run has: those that it shows, and the most telling others.

The cost head's memory grows with the labels of a step. With `train.labels_per_step` a step asks for
the labels of its pixels first, over all workers; half of the places that are left go to the labels
that the text encoder has nearest to these, which are confused most easily, and half are drawn. One
label set serves all images of the step, so that its texts are one batch. What is asked is a
function of the step's pixels and the seed, the same on every worker, and costs no host
synchronisation.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from pipeline.data.taxonomy import IGNORE
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.question import Question
from pipeline.training.worker.micro_batches import MicroBatch


def narrowed(
    config: TrainMixConfig, question: Question, micro: list[MicroBatch], step: int
) -> tuple[Question, list[MicroBatch]]:
    """Asks for at most `train.labels_per_step` of a question's labels.

    Args:
        config: The run.
        question: All labels of the step.
        micro: This worker's batches of the step, with positions in them.
        step: Steps done.

    Returns:
        The smaller question, and the batches with positions in it. Pixels of labels that found no
        place, where a step shows more than it may ask for, become IGNORE.
    """
    count, num_labels = config.train.labels_per_step, len(question.text_KC)
    if not 0 < count < num_labels:
        return question, micro
    present_K = shown([each.label for each in micro], num_labels)
    rng = np.random.Generator(np.random.PCG64([config.run.seed, step, num_labels]))
    drawn_K = torch.from_numpy(rng.permutation(num_labels)).to(present_K.device)
    kept = chosen(question.text_KC, present_K, drawn_K, count)
    # Products of other devices, or of another precision, round otherwise: rank 0 decides.
    dist.broadcast(kept, src=0)
    # Labels have at most 255 positions with pixels; those behind are distractors.
    places = torch.full((max(256, num_labels),), IGNORE, dtype=torch.int64, device=kept.device)
    places[kept] = torch.arange(count, device=kept.device)
    places[IGNORE] = IGNORE
    allowed, weight, source = question.allowed_DK, question.weight_DK, question.source_K
    smaller = replace(
        question,
        text_KC=question.text_KC[kept],
        lut=places[question.lut],
        allowed_DK=None if allowed is None else allowed[:, kept],
        weight_DK=None if weight is None else weight[:, kept],
        source_K=None if source is None else source[kept],
    )
    return smaller, [each._replace(label=places[each.label]) for each in micro]


def shown(labels: Sequence[Tensor], num_labels: int) -> Tensor:
    """Which labels have a pixel in the step, over all workers: (K,) bool."""
    seen = torch.zeros(max(256, num_labels), dtype=torch.int32, device=labels[0].device)
    for label in labels:
        seen[label.flatten()] = 1
    seen[IGNORE] = 0
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return seen[:num_labels] > 0


def chosen(text_KC: Tensor, present_K: Tensor, drawn_K: Tensor, count: int) -> Tensor:
    """Chooses labels.

    Args:
        text_KC: (K, C), rows of length 1.
        present_K: (K,) bool.
        drawn_K: (K,) int64, the numbers 0 to K - 1 in an order that was drawn.
        count: How many to choose, below K.

    Returns:
        (count,) int64, rising: all that are present, if there is place for them, else the first
        drawn of them; then by turns the nearest to one that is present and the first drawn.
    """
    near_K = (text_KC @ text_KC.T).masked_fill(~present_K, -torch.inf).amax(1)
    # Present ones go last in both orders, and before all others in the end.
    nearest = near_K.masked_fill(present_K, -torch.inf).argsort(descending=True, stable=True)
    first = drawn_K.where(~present_K, drawn_K + len(drawn_K)).argsort()
    turn = torch.arange(len(drawn_K), device=drawn_K.device)
    rank_near, rank_drawn = torch.empty_like(drawn_K), torch.empty_like(drawn_K)
    rank_near[nearest], rank_drawn[first] = 2 * turn, 2 * turn + 1
    rank = torch.minimum(rank_near, rank_drawn).where(~present_K, drawn_K - len(drawn_K))
    return rank.argsort(stable=True)[:count].sort().values
