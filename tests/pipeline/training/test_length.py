"""A run ends by steps, images or passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import parse
from pipeline.errors import UserError
from pipeline.training.config import DEFAULT_STEPS, TrainConfig, TrainMixConfig, in_steps


@given(images=st.integers(1, 10**7), batch_size=st.integers(1, 512), rows=st.integers(1, 10**6))
def test_images_are_covered_by_the_fewest_steps(images, batch_size, rows):
    train = in_steps(TrainConfig(images=images, batch_size=batch_size), rows)
    assert (train.steps - 1) * batch_size < images <= train.steps * batch_size
    assert (train.images, train.passes) == (0, 0)


@given(passes=st.integers(1, 300), batch_size=st.integers(1, 64), rows=st.integers(1, 10**6))
def test_a_pass_is_as_many_images_as_there_are_samples(passes, batch_size, rows):
    train = in_steps(TrainConfig(passes=float(passes), batch_size=batch_size), rows)
    assert (
        train.steps == in_steps(TrainConfig(images=passes * rows, batch_size=batch_size), 1).steps
    )


def test_steps_stay_and_are_the_default():
    assert in_steps(TrainConfig(steps=7), 1000).steps == 7
    assert in_steps(TrainConfig(), 1000).steps == DEFAULT_STEPS


def test_a_recipe_may_give_any_of_the_three():
    for key, value in (("steps", 7), ("images", 70), ("passes", 0.07)):
        config = parse(TrainMixConfig, [f"--train.{key}", str(value), "--train.batch_size", "10"])
        assert in_steps(config.train, 1000).steps == 7


def test_passes_over_unknown_data_stay():
    assert in_steps(TrainConfig(passes=2.0), 0).passes == 2.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 5, "images": 9}, r"train\.steps=5: train\.images=9 also.*exactly one"),
        ({"images": 5, "passes": 1.0}, r"train\.images=5: train\.passes=1\.0 also"),
        ({"images": -5}, r"train\.images=-5: must be above 0"),
        ({"passes": float("inf")}, r"train\.passes=inf"),
        ({"steps": -1}, r"train\.steps=-1"),
    ],
)
def test_wrong_lengths_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(**values)


def test_a_warm_up_longer_than_the_run_is_told_once_the_length_is_known():
    train = TrainConfig(images=100, batch_size=10, warmup_steps=10)
    with pytest.raises(UserError, match=r"train\.warmup_steps=10: must be below train\.steps=10"):
        in_steps(train, 1)
