"""Which labels a step asks for where the run has more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributed as dist

from pipeline.data.taxonomy import IGNORE
from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.questions.question import Question
from pipeline.training.worker.label_budget import chosen, narrowed
from pipeline.training.worker.micro_batches import MicroBatch

K = 12
TEXT = torch.nn.functional.normalize(
    torch.stack([torch.tensor([np.cos(k / K), np.sin(k / K)]) for k in range(K)]).float(), dim=1
)
"""Each label is nearest to the next ones."""


@pytest.fixture(autouse=True)
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def present(*labels: int) -> torch.Tensor:
    return torch.tensor([k in labels for k in range(K)])


def test_present_ones_then_by_turns_the_nearest_and_the_first_drawn():
    drawn = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).flip(0)  # 11 is drawn first.
    assert chosen(TEXT, present(2), drawn, 1).tolist() == [2]
    assert chosen(TEXT, present(2), drawn, 2).tolist() in ([1, 2], [2, 3])  # Equally near.
    assert chosen(TEXT, present(0), drawn, 5).tolist() == [0, 1, 2, 10, 11]
    assert chosen(TEXT, present(), drawn, 3).shape == (3,)


def test_too_many_present_ones_are_drawn_from():
    drawn = torch.arange(K).flip(0)
    assert chosen(TEXT, present(1, 4, 6, 9), drawn, 2).tolist() == [6, 9]


def question() -> Question:
    lut = torch.full((256,), IGNORE)
    lut[20 : 20 + K] = torch.arange(K)
    allowed = torch.ones(2, K, dtype=torch.bool)
    allowed[1, :6] = False
    return Question(TEXT, lut, allowed, weight_DK=torch.arange(2.0 * K).unflatten(0, (2, K)))


def batch(*labels: int) -> MicroBatch:
    label = torch.tensor([[[*labels, IGNORE]]])
    return MicroBatch(torch.zeros(1, 1, len(labels) + 1, 3), label, torch.tensor([0]), 0)


def test_labels_and_competitors_follow_into_the_smaller_question():
    config = TrainMixConfig(train=TrainConfig(labels_per_step=5))
    asked = question()
    smaller, found = narrowed(config, asked, [batch(7, 3), batch(3, 9)], step=4)
    assert smaller.text_KC.shape == (5, 2)
    names = [(asked.text_KC == row).all(1).nonzero().item() for row in smaller.text_KC]
    assert {3, 7, 9} <= set(names)
    assert [names[k] for k in found[0].label.flatten()[:2]] == [7, 3]
    assert [names[k] for k in found[1].label.flatten()[:2]] == [3, 9]
    assert found[0].label[0, 0, 2] == IGNORE
    assert smaller.allowed_DK is not None
    assert smaller.allowed_DK[1].tolist() == [k >= 6 for k in names]
    assert smaller.weight_DK is not None
    assert smaller.weight_DK[1].tolist() == [K + k for k in names]
    target = smaller.target(torch.tensor([[[23, 0]]], dtype=torch.uint8), torch.tensor([0]))
    assert names[target[0, 0, 0]] == 3
    assert target[0, 0, 1] == IGNORE


@pytest.mark.parametrize("num_labels", [254, 255, 256, 257, 300])
def test_unlabelled_pixels_stay_so_however_many_labels_there_are(num_labels: int):
    """Positions behind the first 255 belong to distractors, and 255 is no position at all."""
    text = torch.nn.functional.normalize(torch.randn(num_labels, 8), dim=1)
    lut = torch.full((256,), IGNORE)
    lut[:254] = torch.arange(254)
    asked = Question(text, lut, None)
    for step in range(4):
        config = TrainMixConfig(train=TrainConfig(labels_per_step=num_labels - 1))
        smaller, (found,) = narrowed(config, asked, [batch(3, 253)], step=step)
        first, last, unlabelled = found.label.flatten().tolist()
        assert torch.equal(smaller.text_KC[first], text[3])
        assert torch.equal(smaller.text_KC[last], text[253])
        assert unlabelled == IGNORE
        assert not set(smaller.lut[254:].tolist()) - {IGNORE}


def test_a_dataset_whose_labels_all_found_no_place_has_no_chance():
    """Only then does nothing compete in an image; its pixels are unlabelled in that step."""
    config = TrainMixConfig(train=TrainConfig(labels_per_step=2))
    smaller, _ = narrowed(config, question(), [batch(0, 3)], step=0)
    assert smaller.allowed_DK is not None
    assert smaller.allowed_DK.sum(1).tolist() == [2, 0]
    assert smaller.chance_loss([0, 1]) == smaller.chance_loss([0]) == pytest.approx(np.log(2))
    assert smaller.chance_loss([1]) == 0.0


def test_it_is_a_function_of_seed_step_and_pixels():
    config = TrainMixConfig(train=TrainConfig(labels_per_step=6))

    def texts(step: int, seed: int = 0) -> list[list[float]]:
        given = replace(config, run=replace(config.run, seed=seed))
        return narrowed(given, question(), [batch(1)], step)[0].text_KC.tolist()

    assert texts(3) == texts(3)
    assert len({str(texts(step)) for step in range(8)}) > 1
    assert len({str(texts(3, seed)) for seed in range(8)}) > 1


def test_what_was_present_and_found_no_place_is_ignored():
    config = TrainMixConfig(train=TrainConfig(labels_per_step=2))
    smaller, (found,) = narrowed(config, question(), [batch(0, 4, 8, 11)], step=0)
    counted = found.label[found.label != IGNORE]
    assert len(smaller.text_KC) == 2
    assert sorted(counted.tolist()) == [0, 1]


@pytest.mark.parametrize("count", [0, K, K + 5])
def test_without_a_smaller_budget_nothing_changes(count):
    config = TrainMixConfig(train=TrainConfig(labels_per_step=count))
    asked, micro = question(), [batch(1)]
    assert narrowed(config, asked, micro, 0) == (asked, micro)
