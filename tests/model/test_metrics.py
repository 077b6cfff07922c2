import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.metrics import ConfusionMatrix


def test_by_hand():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 0, 1], [1, 2, 2]]), np.array([[0, 1, 1], [1, 255, 0]], np.uint8))
    assert matrix.counts.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = matrix.iou_per_class().tolist()
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 0])
    assert math.isnan(iou[3])
    assert matrix.miou() == pytest.approx(1 / 3)
    assert matrix.miou(over="target") == pytest.approx(1 / 2)
    assert matrix.miou(over="all") == pytest.approx(1 / 4)
    assert matrix.miou(classes=[1]) == pytest.approx(2 / 3)
    assert matrix.pixel_accuracy() == pytest.approx(3 / 5)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 2, 3, 4, 255])), max_size=60))
@settings(deadline=None)
def test_merging_parts_equals_counting_at_once(pixels):
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    array = np.array(pixels, dtype=np.int64).reshape(-1, 2)
    whole.update(array[:, 0], array[:, 1])
    for part in np.array_split(array, 3):
        other = ConfusionMatrix(5)
        other.update(part[:, 0], part[:, 1])
        parts.merge(other)
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == int((array[:, 1] != 255).sum())


def test_a_prediction_outside_the_classes_is_an_error_not_another_class():
    with pytest.raises(ModelError, match=r"0\.\.3"):
        ConfusionMatrix(4).update(torch.tensor([4]), torch.tensor([0]))
    ConfusionMatrix(4).update(torch.tensor([4]), torch.tensor([255]))
    with pytest.raises(ModelError, match="same shape"):
        ConfusionMatrix(4).update(torch.zeros(2, 2), torch.zeros(4))


def test_nothing_counted_is_nan():
    assert math.isnan(ConfusionMatrix(3).miou())
    assert math.isnan(ConfusionMatrix(3).pixel_accuracy())
