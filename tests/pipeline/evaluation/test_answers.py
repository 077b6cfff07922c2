"""From scores to classes: sums of probabilities, "other" by prompts and by threshold."""

from typing import Any

import numpy as np
import torch

from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.answers import DROPPED, choose, space_of
from pipeline.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.evaluation.protocols import _native_space

LUT = np.full(256, IGNORE, np.uint8)


def scores(*probabilities: float) -> torch.Tensor:
    """One pixel whose softmax is this: (1, T, 1, 1)."""
    return torch.tensor(probabilities).log()[None, :, None, None]


def answer(space, *probabilities: float) -> int:
    return int(choose(scores(*probabilities), space)[0, 0, 0])


def test_probabilities_of_a_class_are_summed():
    space = space_of(("a", "b"), ("t", "u", "v"), LUT, (0, 1, 1))
    assert answer(space, 0.4, 0.35, 0.25) == 1
    assert answer(space, 0.6, 0.2, 0.2) == 0


def test_texts_without_a_class_cannot_win():
    space = space_of(("a", "b"), ("t", "u", "v"), LUT, (DROPPED, 0, 1))
    assert answer(space, 0.9, 0.04, 0.06) == 1


def test_a_threshold_counts_the_sum_and_gives_none_or_the_background():
    grouped = space_of(("a", "b"), ("t", "u", "v"), LUT, (0, 1, 1))
    policy = OtherPolicy(policy="threshold", threshold=0.55)
    space = grouped.with_policy(policy)
    assert answer(space, 0.4, 0.3, 0.3) == 1
    assert answer(space, 0.5, 0.3, 0.2) == space.none == 2
    background = space_of(("bg", "b"), ("bg", "b", "c"), LUT, (0, 1, 1), rest=0)
    assert answer(background.with_policy(policy), 0.2, 0.4, 0.1) == 1
    assert answer(background.with_policy(policy), 0.3, 0.3, 0.4) == 1
    assert answer(background.with_policy(policy), 0.45, 0.25, 0.25) == 0
    assert space.policy == "threshold 0.55"


def test_prompts_compete_as_one_class_that_is_none():
    policy = OtherPolicy(policy="prompts", prompts=("other", "stuff", "a"))
    space = space_of(("a", "b"), ("a", "b"), LUT).with_policy(policy)
    assert space.texts == ("a", "b", "other", "stuff")
    assert answer(space, 0.4, 0.1, 0.25, 0.25) == space.none
    assert answer(space, 0.4, 0.25, 0.2, 0.15) == 0


def test_native_classes_sum_what_mseg_cut_out_of_them():
    space, _ = _native_space(EvaluateConfig(checkpoint="x", protocol="native-mapped"), "cityscapes")
    rider = space.classes.index("rider")
    texts = [t for t, number in zip(space.texts, space.text_class, strict=True) if number == rider]
    assert texts == ["rider other", "bicyclist", "motorcyclist"]
    assert not space.one_text_each
    space, _ = _native_space(EvaluateConfig(checkpoint="x", protocol="native-mapped"), "mapillary")
    animal = space.classes.index("ground animal")
    assert sum(number == animal for number in space.text_class) == 5


def test_evaluations_that_differ_have_names_that_differ():
    same: dict[str, Any] = {"checkpoint": "x", "protocol": "ade20k-150"}
    changes: list[dict[str, Any]] = [
        {},
        {"max_images": 5},
        {"split": "train"},
        {"precision": "bf16"},
        {"geometry": Geometry(mode="published", base_px=1024)},
        {"other": OtherPolicy(policy="threshold", threshold=0.3)},
        {"other": OtherPolicy(policy="threshold", threshold=0.4)},
        {"seed": 1},
    ]
    names = [EvaluateConfig(**same, **change).variant for change in changes]
    assert len(set(names)) == len(names)
    assert names[0] == "ade20k-150"
    assert "max5" in names[1]
