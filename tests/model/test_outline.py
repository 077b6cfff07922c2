"""Files that describe one network and hold another, or none."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model import outline
from model.errors import ModelError
from model.outline import check_finite, load_weights, outline_of


def test_a_network_takes_no_memory_before_its_file_is_known_to_fit(tmp_path):
    large = outline_of(lambda: nn.Linear(2**20, 2**20), "config.yaml")
    assert large.weight.is_meta
    save_file({"weight": torch.ones(3, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"weight is \(3, 2\) instead of \(1048576, 1048576\)"):
        load_weights(tmp_path / "w.safetensors", large.state_dict())
    fitting = outline_of(lambda: nn.Linear(2, 3, bias=False), "config.yaml").state_dict()
    assert load_weights(tmp_path / "w.safetensors", fitting)["weight"].sum() == 6


def test_a_network_of_endless_parts_is_refused(monkeypatch):
    monkeypatch.setattr(outline, "MAX_MODULES", 100)

    def endless() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Identity()) for _ in range(1000)))

    with pytest.raises(ModelError, match="more than 100 modules"):
        outline_of(endless, "config.yaml")
    endless()  # The limit is gone again.


@pytest.mark.parametrize(
    "build",
    [
        lambda: 1 // 0,
        lambda: nn.Linear(2**50, 2**50),
        lambda: {}["x"],
        lambda: None.x,
        lambda: "x" + 1,
    ],
)
def test_whatever_stops_the_building_is_one_line(build):
    with pytest.raises(ModelError, match=r"^config\.yaml: describes no network"):
        outline_of(build, "config.yaml")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "1 of 1 tensors hold NaN"),
        (torch.tensor([1.0, float("inf")]), "1 of 1 tensors hold NaN"),
        (torch.tensor([True, False]), "holds BOOL"),
        (torch.tensor([1, 2]), "holds I64"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(tmp_path, tensor, reason):
    save_file({"w": tensor}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=reason):
        load_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2)})


def test_half_precision_and_counters_are_weights(tmp_path):
    tensors = {"w": torch.ones(2).bfloat16(), "n": torch.tensor(3)}
    save_file(tensors, tmp_path / "w.safetensors")
    wanted = {"w": torch.zeros(2), "n": torch.tensor(0)}
    assert load_weights(tmp_path / "w.safetensors", wanted)["n"] == 3
    check_finite({"n": torch.tensor(3), "w": torch.ones(2)}, "file")


def test_what_is_missing_and_unexpected_is_named(tmp_path):
    save_file({f"x{n}": torch.zeros(1) for n in range(9)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w is missing; 'x0' is unexpected.*and 5 more") as caught:
        load_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2)})
    assert "\n" not in str(caught.value)
