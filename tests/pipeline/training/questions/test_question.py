"""The loss of a step in which the labels of each dataset compete among themselves."""

import torch

from model.loss import segmentation_loss
from pipeline.data.taxonomy import IGNORE
from pipeline.training.questions.question import Question

DATASETS, LABELS = 3, 7


def drawn(seed: int, weighted: bool) -> tuple[Question, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A question, logits, positions of labels that compete in each image, and the datasets."""
    rng = torch.Generator().manual_seed(seed)
    allowed = torch.rand(DATASETS, LABELS, generator=rng) < 0.5
    allowed[2] = False  # A step may leave all labels of a dataset out.
    allowed[:2, 3] = True
    dataset = torch.tensor([1, 2, 0, 1])
    label = torch.randint(0, LABELS, (4, 6, 5), generator=rng)
    label[~allowed[dataset[:, None, None], label]] = IGNORE
    weight = torch.rand(DATASETS, LABELS, generator=rng) if weighted else None
    logits = torch.randn(4, LABELS, 3, 4, generator=rng, requires_grad=True)
    text, lut = torch.zeros(LABELS, 2), torch.full((256,), IGNORE)
    return Question(text, lut, allowed, weight_DK=weight), logits, label, dataset


def test_labels_left_out_of_the_loss_are_labels_masked():
    for seed in range(10):
        question, logits, label, dataset = drawn(seed, weighted=seed % 2 == 0)
        assert (label != IGNORE).any()
        loss = question.loss_sum(logits, label, dataset)
        (gradient,) = torch.autograd.grad(loss, logits)
        weight = None
        if question.weight_DK is not None:
            weight = question.weight_DK[dataset[:, None, None], label.clamp_max(LABELS - 1)]
        masked = question.mask(logits, dataset)
        wanted, _ = segmentation_loss(masked, label, IGNORE, weight_BHW=weight)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(gradient, torch.autograd.grad(wanted, logits)[0])


def test_a_step_in_which_nothing_competes_has_a_gradient_of_zero():
    question, logits, label, _ = drawn(0, weighted=False)
    dataset = torch.tensor([2, 2, 2, 2])
    loss = question.loss_sum(logits, label.fill_(IGNORE), dataset)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_more_labels_than_a_byte_counts():
    text, lut = torch.zeros(300, 2), torch.full((256,), IGNORE)
    allowed = torch.zeros(1, 300, dtype=torch.bool)
    allowed[0, 290:] = True
    question = Question(text, lut, allowed)
    logits = torch.zeros(1, 300, 2, 2)
    logits[0, 290] = 50.0
    loss = question.loss_sum(logits, torch.full((1, 2, 2), 290), torch.tensor([0]))
    assert loss.item() == 0
