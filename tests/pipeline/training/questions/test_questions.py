"""The labels a step asks: a function of seed and step, with "other" and distractors in place."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.config import TextConfig
from model.text import build_text_encoder
from pipeline.data.taxonomy import IGNORE, Taxonomy, label_text, universal
from pipeline.errors import UserError
from pipeline.evaluation.behaviours.classes import HELD_OUT
from pipeline.training.config import DistractorConfig, OtherConfig, TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import balanced, label_space
from pipeline.training.questions.questions import Questions
from pipeline.training.questions.words import distractor_texts, words_for_other

NAMES = ("road", "sky", "car", "dog", "traffic_sign")
ENCODER = build_text_encoder(TextConfig(encoder="stand-in"))


def questions(other: OtherConfig | None = None, count: int = 0, seed: int = 0) -> Questions:
    distractors = DistractorConfig(count=count, never=HELD_OUT)
    train = TrainConfig(other=other or OtherConfig(), distractors=distractors)
    config = TrainMixConfig(train=train)
    config = replace(config, run=replace(config.run, seed=seed))
    return Questions(config, label_space(NAMES), ENCODER, torch.device("cpu"))


def parts(asked: Questions, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    question = asked.at(step)
    return question.text_KC, question.lut


def test_as_published_every_step_asks_all_labels():
    asked = questions()
    for step in (0, 1, 999):
        text, lut = parts(asked, step)
        torch.testing.assert_close(text, ENCODER.encode([label_text(n) for n in NAMES]))
        for position, name in enumerate(NAMES):
            assert lut[universal().id_of(name)] == position
        assert (lut == IGNORE).sum() == 256 - len(NAMES)


def test_labels_that_are_the_same_are_warned_of(caplog):
    taxonomy = Taxonomy("own", ("Bottle-X", "shelf", "bottle-x"))
    space = label_space(taxonomy.classes, taxonomy)
    Questions(TrainMixConfig(), space, ENCODER, torch.device("cpu"))
    (line,) = caplog.messages
    assert "'Bottle-X' and 'bottle-x' are the same to the text encoder" in line
    caplog.clear()
    questions()
    assert not caplog.messages


def test_dropped_labels_become_other():
    asked = questions(OtherConfig(share=1.0, drop=0.5, words=("other",)))
    every = ENCODER.encode([label_text(n) for n in NAMES])
    other = ENCODER.encode(["other"])[0]
    sizes = set()
    for step in range(30):
        text, lut = parts(asked, step)
        sizes.add(len(text))
        torch.testing.assert_close(text[-1], other)
        for position, name in enumerate(NAMES):
            target = int(lut[universal().id_of(name)])
            if target < len(text) - 1:
                torch.testing.assert_close(text[target], every[position])
            else:
                assert target == len(text) - 1
                assert not (text[:-1] == every[position]).all(1).any()
        assert lut[IGNORE] == IGNORE
    assert len(sizes) > 2


def test_share_of_the_batches():
    asked = questions(OtherConfig(share=0.3, drop=1.0, words=("other",)))
    smaller = [len(parts(asked, step)[0]) != len(NAMES) for step in range(600)]
    assert 0.22 < np.mean(smaller) < 0.38


def test_distractors_are_never_right_and_never_held_out():
    asked = questions(OtherConfig(share=0.5), count=20)
    forbidden = ENCODER.encode([label_text(n) for n in (*NAMES, *HELD_OUT)])
    seen = set()
    for step in range(20):
        text, lut = parts(asked, step)
        extra = text[-20:]
        assert int(lut[lut != IGNORE].max()) < len(text) - 20
        assert (extra[:, None] != forbidden[None]).any(-1).all()
        seen.update(tuple(row.tolist()[:4]) for row in extra)
    assert len(seen) > 60


def test_a_step_asks_the_same_whenever_it_comes():
    one, two = (questions(OtherConfig(share=0.7), count=5) for _ in range(2))
    for step in (7, 3, 7, 500):
        torch.testing.assert_close(parts(one, step), parts(two, step))
    elsewhere = questions(OtherConfig(share=0.7), count=5, seed=1)
    assert any(not torch.equal(parts(one, s)[0], parts(elsewhere, s)[0]) for s in range(5))


def test_too_many_distractors():
    with pytest.raises(UserError, match=r"train\.distractors\.count=190: only 179 classes"):
        distractor_texts(DistractorConfig(count=190, never=HELD_OUT), label_space(NAMES))
    with pytest.raises(UserError, match="horse"):
        distractor_texts(DistractorConfig(never=("hors",)), label_space(NAMES))


def test_labels_of_other_datasets_do_not_compete():
    shown = {"first": np.array([1, 1, 0, 0, 0], bool), "second": np.array([0, 1, 1, 1, 1], bool)}
    other = OtherConfig(share=0.5, words=("other",))
    train = TrainConfig(label_sets="own", other=other, distractors=DistractorConfig(count=3))
    config = TrainMixConfig(train=train)
    asked = Questions(config, label_space(NAMES), ENCODER, torch.device("cpu"), shown)
    every = ENCODER.encode([label_text(n) for n in NAMES])
    for step in range(20):
        question = asked.at(step)
        num_labels = len(question.text_KC)
        logits = torch.zeros(2, num_labels, 2, 2, requires_grad=True)
        masked = question.mask(logits, torch.tensor([1, 0]))
        likely = masked.softmax(1)[:, :, 0, 0]
        for image, name in enumerate(("second", "first")):
            for position, text in enumerate(question.text_KC):
                known = (text == every).all(1).nonzero().flatten().tolist()
                competes = shown[name][known[0]] if known else True  # "other", distractors
                assert (likely[image, position] > 0) == competes
        (gradient,) = torch.autograd.grad(masked.softmax(1)[0, 0].sum(), logits)
        assert torch.isfinite(gradient).all()
    assert asked.labels_of("first").tolist() == [0, 1]
    assert asked.labels_of("third").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("label_sets", ["union", "own"])
def test_the_chance_loss_is_that_of_equal_logits(label_sets):
    shown = {"first": np.array([1, 1, 0, 0, 0], bool), "second": np.array([0, 1, 1, 1, 1], bool)}
    config = TrainMixConfig(train=TrainConfig(label_sets=label_sets))
    asked = Questions(config, label_space(NAMES), ENCODER, torch.device("cpu"), shown)
    question = asked.at(0)
    logits = question.mask(torch.zeros(2, len(NAMES), 1, 1), torch.tensor([1, 0]))
    losses = -logits.log_softmax(1)[:, :, 0, 0]  # Of the labels that compete, all the same.
    expected = losses.min(1).values.mean().item()
    assert question.chance_loss([1, 0]) == pytest.approx(expected)


@pytest.mark.parametrize("label_sets", ["union", "own"])
def test_the_chance_loss_of_single_labels_is_the_best_of_equal_logits(label_sets):
    """No answer that is the same for all labels has a smaller loss."""
    shown = {"first": np.array([1, 1, 0, 0, 0], bool), "second": np.array([0, 1, 1, 1, 1], bool)}
    config = TrainMixConfig(train=TrainConfig(label_sets=label_sets, loss="binary"))
    question = Questions(config, label_space(NAMES), ENCODER, torch.device("cpu"), shown).at(0)
    dataset, label = torch.tensor([1, 0]), torch.ones(2, 3, 3, dtype=torch.int64)
    label[0, 0] = 255
    competing = [5, 5] if label_sets == "union" else [4, 2]
    best = torch.tensor([-math.log(count - 1) for count in competing])
    losses = []
    for change in (-0.1, 0.0, 0.1):
        logits = (best + change)[:, None, None, None].expand(2, len(NAMES), 3, 3)
        each = [question.loss_sum(logits[[i]], label[[i]], dataset[[i]]) for i in (0, 1)]
        losses.append((each[0] / 6 + each[1] / 9).item() / 2)
    assert question.num_counted(label) == 15
    assert min(losses) == losses[1] == pytest.approx(question.chance_loss([1, 0]))


def test_a_class_called_like_a_word_for_other_takes_it_from_the_list(caplog):
    taxonomy = Taxonomy("own", ("Background", "shirt"))
    space = label_space(taxonomy.classes, taxonomy)
    config = OtherConfig(share=1.0, drop=0.0)
    with caplog.at_level("INFO"):
        assert words_for_other(config, space) == ("other", "others", "something")
    assert "background is a class of this run, and not asked" in caplog.text
    asked = Questions(
        TrainMixConfig(train=TrainConfig(other=config)), space, ENCODER, torch.device("cpu")
    )
    background = ENCODER.encode(["background"])[0]
    for step in range(20):  # Once, as the class, and never as the word.
        same = (asked.at(step).text_KC[2:] - background).abs().sum(1) < 1e-6
        assert len(same) == 1
    with pytest.raises(UserError, match="each is the name of a class of this run"):
        words_for_other(OtherConfig(share=0.5, words=("background", "SHIRT")), space)
    assert words_for_other(OtherConfig(words=("background",)), space) == ()


def test_distractors_may_be_words():
    config = DistractorConfig(count=2, words=("boat", "sofa", "Traffic-Sign"))
    assert distractor_texts(config, label_space(NAMES)) == ("boat", "sofa")
    with pytest.raises(UserError, match="only 2 of train"):
        distractor_texts(replace(config, count=3), label_space(NAMES))
    with pytest.raises(UserError, match=r"distractors\.never: has no effect"):
        DistractorConfig(count=1, words=("boat",), never=("horse",))


def test_rare_classes_count_more_and_a_dataset_as_much_as_before():
    pixels = np.array([9000, 900, 90, 1, 0])
    for balance in (0.5, 1.0):
        weight = balanced(pixels, balance)
        assert weight[1] / weight[0] == pytest.approx(10**balance)
        # Below a thousandth of the pixels a class counts no more.
        assert weight[3] / weight[0] == pytest.approx((9000 / 9.991) ** balance)
        assert float(pixels @ weight) == pytest.approx(pixels.sum(), rel=1e-5)
        assert weight[4] == 1
    assert balanced(np.zeros(2, np.int64), 0.5).tolist() == [1, 1]


def test_a_pixel_keeps_its_weight_whatever_else_a_step_asks():
    weights = {"first": np.array([1, 2, 3, 4, 5], np.float32), "second": np.ones(5, np.float32)}
    train = TrainConfig(
        other=OtherConfig(share=0.5, words=("other",)), distractors=DistractorConfig(count=3)
    )
    config, space = TrainMixConfig(train=train), label_space(NAMES)
    asked = Questions(config, space, ENCODER, torch.device("cpu"), None, weights)
    every = ENCODER.encode(space.texts)
    for step in range(8):
        question = asked.at(step)
        assert question.weight_DK is not None
        for text, weight in zip(question.text_KC, question.weight_DK[0].tolist(), strict=True):
            known = (text == every).all(1).nonzero().flatten().tolist()
            assert weight == (known[0] + 1 if known else 1)  # "other" and distractors: 1.
        label = torch.tensor([[[0, IGNORE]], [[0, IGNORE]]])
        logits = torch.zeros(2, len(question.text_KC), 1, 2)
        loss = question.loss_sum(logits, label, torch.tensor([0, 1]))
        first = question.weight_DK[0, 0].item()
        assert loss.item() == pytest.approx((first + 1) * math.log(len(question.text_KC)), rel=1e-5)


def test_balance_is_for_labels_that_compete():
    with pytest.raises(UserError, match=r"balance=0\.5: has no meaning with the loss binary"):
        TrainMixConfig(train=TrainConfig(balance=0.5, loss="binary"))
    with pytest.raises(UserError, match=r"train\.balance=2: must lie between 0 and 1"):
        TrainConfig(balance=2)


def test_noise_moves_each_label_along_the_differences_of_words():
    train = TrainConfig(text_noise=0.5)
    clean = ENCODER.encode([label_text(n) for n in NAMES])
    config, space = TrainMixConfig(train=train), label_space(NAMES)
    asked, again = (Questions(config, space, ENCODER, torch.device("cpu")) for _ in range(2))
    first, second = asked.at(0).text_KC, asked.at(1).text_KC
    torch.testing.assert_close(first, again.at(0).text_KC, rtol=0, atol=0)
    assert (first - second).abs().max() > 0.01
    span = torch.linalg.qr(clean.T).Q
    drawn = torch.stack([asked.at(step).text_KC for step in range(300)])
    torch.testing.assert_close(drawn.norm(dim=2), torch.ones(300, len(NAMES)))
    torch.testing.assert_close(drawn @ span @ span.T, drawn, rtol=0, atol=1e-5)
    # The mean of the moved vectors is the clean one, shortened by what the noise adds in length.
    mean = functional.normalize(drawn.mean(0), dim=1)
    assert ((mean * clean).sum(1) > 0.99).all()
    assert 0.8 < (drawn * clean).sum(2).mean() < 0.97
    plain = Questions(TrainMixConfig(), space, ENCODER, torch.device("cpu"))
    assert plain.at(0).text_KC.equal(clean)
    with pytest.raises(UserError, match=r"train\.text_noise=-1: must lie between 0 and 10"):
        TrainConfig(text_noise=-1)
