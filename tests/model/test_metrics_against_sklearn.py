"""The same figures as scikit-learn's, on random and on hand-made cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from model.metrics import (
    ConfusionMatrix,
    foreground_background_iou,
    foreground_miou,
    merge_classes,
)

CASES = {
    "all right": ([0, 1, 2, 2], [0, 1, 2, 2]),
    "all wrong": ([1, 2, 0, 0], [0, 1, 2, 2]),
    "a class only predicted": ([0, 3, 1, 1], [0, 1, 1, 0]),
    "a class only present": ([0, 0, 0, 0], [0, 1, 2, 0]),
    "ignored pixels with wrong answers": ([4, 4, 0, 1], [255, 255, 0, 1]),
    "one class, one pixel": ([0], [0]),
}


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    num_pixels = int(rng.integers(1, 4000))
    target = rng.choice([0, 1, 2, 3, 4, 255], num_pixels, p=[0.5, 0.2, 0.15, 0.04, 0.01, 0.1])
    pred = np.where(rng.random(num_pixels) < rng.random(), target % 5, rng.integers(0, 5))
    return pred, target


def check(pred: np.ndarray, target: np.ndarray) -> None:
    ours = ConfusionMatrix(5)
    # In parts, as an evaluation sees its pictures.
    for part, truth in zip(np.array_split(pred, 3), np.array_split(target, 3), strict=True):
        ours.update(part, truth)
    kept = target != 255
    truth, answer = target[kept], pred[kept]
    theirs = confusion_matrix(truth, answer, labels=range(5))
    assert np.array_equal(ours.counts.numpy(), theirs)
    iou = jaccard_score(truth, answer, labels=range(5), average=None, zero_division=0)
    iou[~np.isin(range(5), np.union1d(truth, answer))] = np.nan
    assert np.allclose(ours.iou_per_class().numpy(), iou, equal_nan=True, rtol=0, atol=1e-15)
    assert ours.miou() == pytest.approx(np.nanmean(iou), abs=1e-15)
    assert ours.miou("all") == pytest.approx(np.nan_to_num(iou).mean(), abs=1e-15)
    assert ours.miou("target") == pytest.approx(iou[np.unique(truth)].mean(), abs=1e-15)
    assert ours.pixel_accuracy() == pytest.approx(accuracy_score(truth, answer), abs=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_hand_made_cases(name):
    pred, target = CASES[name]
    check(np.array(pred), np.array(target))


@pytest.mark.parametrize("seed", range(20))
def test_random_cases(seed):
    check(*random_case(seed))


@pytest.mark.parametrize("seed", range(10))
def test_few_shot_figures_are_those_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    counts, per_class, all_pred, all_target = [], [], [], []
    for _ in range(5):
        matrix = ConfusionMatrix(2)
        preds, targets = [], []
        for _ in range(int(rng.integers(1, 4))):
            target = rng.choice([0, 1, 255], 300, p=[0.7, 0.25, 0.05])
            pred = np.where(rng.random(300) < 0.8, target % 2, rng.integers(0, 2, 300))
            matrix.update(pred, target)
            preds.append(pred[target != 255])
            targets.append(target[target != 255])
        counts.append(matrix.counts)
        pred, target = np.concatenate(preds), np.concatenate(targets)
        per_class.append(jaccard_score(target, pred, pos_label=1, zero_division=0))
        all_pred.append(pred)
        all_target.append(target)
    stacked = torch.stack(counts)
    assert foreground_miou(stacked) == pytest.approx(np.mean(per_class), abs=1e-15)
    # Intersections and unions are summed over classes: one big picture of all.
    both = jaccard_score(
        np.concatenate(all_target), np.concatenate(all_pred), labels=[0, 1], average="macro"
    )
    assert foreground_background_iou(stacked) == pytest.approx(both, abs=1e-15)


def test_few_shot_figures_by_hand():
    # Class a: 2 of 4 foreground pixels found, one false alarm; class b: never seen at all.
    a = torch.tensor([[5, 1], [2, 2]])
    counts = torch.stack([a, torch.zeros(2, 2, dtype=torch.int64)])
    assert foreground_miou(counts) == pytest.approx((2 / 5 + 0) / 2)
    assert foreground_background_iou(counts) == pytest.approx((5 / 8 + 2 / 5) / 2)
    assert np.isnan(foreground_background_iou(counts[1:]))


def test_merged_classes_equal_counting_merged_ids():
    groups = np.array([0, 1, 0, 2, 1])
    for seed in range(5):
        pred, target = random_case(seed)
        kept = target != 255
        whole = ConfusionMatrix(5)
        whole.update(pred, target)
        expected = confusion_matrix(groups[target[kept]], groups[pred[kept]], labels=range(3))
        assert np.array_equal(merge_classes(whole.counts, groups.tolist()).numpy(), expected)
