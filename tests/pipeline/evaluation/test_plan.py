"""What becomes of "other", what native classes ask, and how evaluations are named."""

from typing import Any

from pipeline.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.evaluation.plan import with_policy
from pipeline.evaluation.protocols import _native_space
from pipeline.scoring import space_of
from tests.pipeline.test_scoring import LUT, answer


def test_a_threshold_counts_the_sum_and_gives_none_or_the_background():
    grouped = space_of(("a", "b"), ("t", "u", "v"), LUT, (0, 1, 1))
    policy = OtherPolicy(policy="threshold", threshold=0.55)
    space = with_policy(grouped, policy)
    assert answer(space, 0.4, 0.3, 0.3) == 1
    assert answer(space, 0.5, 0.3, 0.2) == space.none == 2
    background = space_of(("bg", "b"), ("bg", "b", "c"), LUT, (0, 1, 1), rest=0)
    assert answer(with_policy(background, policy), 0.2, 0.4, 0.1) == 1
    assert answer(with_policy(background, policy), 0.3, 0.3, 0.4) == 1
    assert answer(with_policy(background, policy), 0.45, 0.25, 0.25) == 0
    assert space.policy == "threshold 0.55"


def test_prompts_compete_as_one_class_that_is_none():
    policy = OtherPolicy(policy="prompts", prompts=("other", "stuff", "a"))
    space = with_policy(space_of(("a", "b"), ("a", "b"), LUT), policy)
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
