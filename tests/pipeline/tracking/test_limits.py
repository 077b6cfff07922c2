"""The limits are those of the MLflow that is installed."""

import pytest
from mlflow.utils import validation

from pipeline.tracking import limits


def test_the_limits_are_those_of_mlflow():
    assert limits.MAX_PARAM_CHARS == validation.MAX_PARAM_VAL_LENGTH
    assert limits.MAX_RUN_TAG_CHARS == validation.MAX_TAG_VAL_LENGTH
    assert limits.MAX_VERSION_TAG_CHARS <= validation.MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH
    assert limits.MAX_ENTITIES == validation.MAX_ENTITIES_PER_BATCH
    assert limits.MAX_TEXTS == validation.MAX_PARAMS_TAGS_PER_BATCH


@pytest.mark.parametrize("name", ["val/ade 20k?/miou", "a:b", "größe", "x[1]"])
def test_mlflow_takes_every_name_after_it_was_cleaned(name):
    validation._validate_metric_name(limits.name_for_mlflow(name))
    assert limits.name_for_mlflow("val/a-b_c.d e:f") == "val/a-b_c.d e:f"


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("val/ade20k/miou", "val_miou/ade20k"),
        ("val/sun_rgbd/pixel_accuracy", "val_pixel_accuracy/sun_rgbd"),
        ("val/miou", "val/miou"),
        ("train/loss", "train/loss"),
        ("eval/unified/miou", "eval/unified/miou"),
    ],
)
def test_figures_of_a_dataset_are_grouped_by_figure_and_read_back(plain, shown):
    assert limits.name_of_metric(plain) == shown
    assert limits.name_of_metric(shown) == shown
    assert limits.plain_name_of_metric(shown) == limits.plain_name_of_metric(plain) == plain
