"""What the comparison of two runs sees."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.training_runs import compare


def write(runs: Path, name: str, weight: torch.Tensor, order: str = "a\nb\n") -> None:
    folder = runs / name / "step_00000002"
    folder.mkdir(parents=True)
    save_file({"weight": weight, "ones": torch.ones(4)}, folder / "model.safetensors")
    (folder / "order.txt").write_text(order)


def test_distances_are_those_of_the_tensors(tmp_path):
    write(tmp_path, "one", torch.tensor([3.0, 0.0]))
    write(tmp_path, "other", torch.tensor([3.0, 0.03]), order="a\nc\n")
    found = compare(tmp_path, "one", "other", 2)
    assert not found.same_order
    assert found.absolute == pytest.approx(0.03)
    assert found.relative == pytest.approx(0.01)
    assert found.overall == pytest.approx(0.03 / 13**0.5)
    assert compare(tmp_path, "one", "one", 2).same_order


@pytest.mark.parametrize("other", [[3.0, float("nan")], [float("inf"), 0.0]])
def test_weights_that_are_not_finite_are_never_the_same(tmp_path, other):
    write(tmp_path, "one", torch.tensor([3.0, 0.0]))
    write(tmp_path, "other", torch.tensor(other))
    with pytest.raises(AssertionError, match="weight"):
        compare(tmp_path, "one", "other", 2)
    with pytest.raises(AssertionError, match="weight"):
        compare(tmp_path, "other", "other", 2)


def test_another_precision_is_another_run(tmp_path):
    write(tmp_path, "one", torch.tensor([3.0, 0.0]))
    write(tmp_path, "other", torch.tensor([3.0, 0.0], dtype=torch.float64))
    with pytest.raises(AssertionError, match="weight"):
        compare(tmp_path, "one", "other", 2)
