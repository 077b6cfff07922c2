"""The labels a step asks: a function of seed and step, with "other" and distractors in place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import TextConfig
from model.text import build_text_encoder
from pipeline.data.synthetic import HELD_OUT
from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.errors import UserError
from pipeline.training.config import DistractorConfig, OtherConfig, TrainConfig, TrainMixConfig
from pipeline.training.labels import label_space
from pipeline.training.questions import Questions, distractor_texts

NAMES = ("road", "sky", "car", "dog", "traffic_sign")
ENCODER = build_text_encoder(TextConfig(encoder="stand-in"))


def questions(other: OtherConfig | None = None, count: int = 0, seed: int = 0) -> Questions:
    distractors = DistractorConfig(count=count, never=HELD_OUT)
    train = TrainConfig(other=other or OtherConfig(), distractors=distractors)
    config = TrainMixConfig(train=train)
    config = replace(config, run=replace(config.run, seed=seed))
    return Questions(config, label_space(NAMES), ENCODER, torch.device("cpu"))


def test_as_published_every_step_asks_all_labels():
    asked = questions()
    for step in (0, 1, 999):
        text, lut = asked.at(step)
        torch.testing.assert_close(text, ENCODER.encode([label_text(n) for n in NAMES]))
        for position, name in enumerate(NAMES):
            assert lut[universal().id_of(name)] == position
        assert (lut == IGNORE).sum() == 256 - len(NAMES)


def test_dropped_labels_become_other():
    asked = questions(OtherConfig(share=1.0, drop=0.5, words=("other",)))
    every = ENCODER.encode([label_text(n) for n in NAMES])
    other = ENCODER.encode(["other"])[0]
    sizes = set()
    for step in range(30):
        text, lut = asked.at(step)
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
    smaller = [len(asked.at(step)[0]) != len(NAMES) for step in range(600)]
    assert 0.22 < np.mean(smaller) < 0.38


def test_distractors_are_never_right_and_never_held_out():
    asked = questions(OtherConfig(share=0.5), count=20)
    forbidden = ENCODER.encode([label_text(n) for n in (*NAMES, *HELD_OUT)])
    seen = set()
    for step in range(20):
        text, lut = asked.at(step)
        extra = text[-20:]
        assert int(lut[lut != IGNORE].max()) < len(text) - 20
        assert (extra[:, None] != forbidden[None]).any(-1).all()
        seen.update(tuple(row.tolist()[:4]) for row in extra)
    assert len(seen) > 60


def test_a_step_asks_the_same_whenever_it_comes():
    one, two = (questions(OtherConfig(share=0.7), count=5) for _ in range(2))
    for step in (7, 3, 7, 500):
        torch.testing.assert_close(one.at(step), two.at(step))
    elsewhere = questions(OtherConfig(share=0.7), count=5, seed=1)
    assert any(not torch.equal(one.at(s)[0], elsewhere.at(s)[0]) for s in range(5))


def test_too_many_distractors():
    with pytest.raises(UserError, match=r"train\.distractors\.count=190: only 179 classes"):
        distractor_texts(DistractorConfig(count=190, never=HELD_OUT), label_space(NAMES))
    with pytest.raises(UserError, match="horse"):
        distractor_texts(DistractorConfig(never=("hors",)), label_space(NAMES))
