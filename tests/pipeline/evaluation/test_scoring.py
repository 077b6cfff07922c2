"""Which texts a network is not asked together: those that are the same to the text encoder."""

from dataclasses import replace

import pytest

from model.config import TextConfig
from model.text import build_text_encoder
from pipeline.data.taxonomy import DATASETS, universal
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, OtherPolicy
from pipeline.evaluation.few_shot import EpisodeItems
from pipeline.evaluation.held_out import held_out_space
from pipeline.evaluation.plan import Part, with_policy
from pipeline.evaluation.protocols import _native_space, published_ade20k_labels
from pipeline.evaluation.scoring import check_texts
from pipeline.evaluation.views import View
from pipeline.scoring import AnswerSpace, space_of
from tests.pipeline.test_scoring import LUT

ENCODER = build_text_encoder(TextConfig(encoder="stand-in"))


def checked(space: AnswerSpace, *episodes: tuple[str, ...]) -> None:
    source = EpisodeItems("own", "", (), episodes, tuple(range(len(episodes))))
    check_texts(Part("own", source, space, View()), ENCODER)


def spelt(*texts: str) -> AnswerSpace:
    return space_of([f"class {n}" for n in range(len(texts))], texts, LUT)


def test_spellings_of_one_text_cannot_be_two_classes():
    with pytest.raises(UserError, match="own: 'Bottle-X' and 'bottle-x' are the same"):
        checked(spelt("sky", "Bottle-X", "bottle-x"))
    checked(spelt("sky", "bottle", "bottles"))
    # Two texts of one class, or one that cannot win, are no question.
    same = replace(spelt("sky", "Bottle-X", "bottle-x"), text_class=(0, 1, 1))
    checked(same)
    checked(replace(same, text_class=(0, 1, -1)))


def test_a_prompt_for_none_cannot_be_a_class():
    policy = OtherPolicy(policy="prompts", prompts=("other", "SKY"))
    with pytest.raises(UserError, match=r"other\.prompts: 'sky' and 'SKY'"):
        checked(with_policy(spelt("sky", "road"), policy))
    episodes = replace(spelt("", ""), texts=())
    checked(episodes, ("others", "dog"))
    with pytest.raises(UserError, match="'others' and 'Other'"):
        checked(episodes, ("others", "dog"), ("others", "Other"))


def test_the_protocols_own_texts_may_all_be_asked():
    checked(spelt(*published_ade20k_labels()))  # "screen" is there twice, as published.
    checked(space_of(universal().classes, universal().classes, LUT))
    checked(held_out_space("camvid-11"))
    for protocol in ("native-names", "native-mapped"):
        for dataset in DATASETS:
            config = EvaluateConfig(checkpoint="x", protocol=protocol)
            checked(_native_space(config, dataset)[0])
