"""The cost head and the dense features of CLIP against numbers of the published code."""

import ast

import numpy as np
import pytest
import torch

from model.config import AlignedConfig
from model.head.aggregator import Aggregator
from tests.golden import plain_cost, run_cost, run_dense

CASES = "reference/golden/cost_head"


@pytest.mark.parametrize("case", ["K5", "K7_pad"])
def test_logits_are_the_published_ones(shared_data, case):
    golden = np.load(shared_data(f"{CASES}/case_{case}.npz"))
    settings = [int(golden[name]) for name in ("K", "P", "pad", "pool", "dim")]
    logits = run_cost.cost_logits(*settings, batch=int(golden["shape"][0])).numpy()
    assert list(logits.shape) == list(golden["shape"])
    np.testing.assert_allclose(logits[:, :, ::3, ::3], golden["stride3"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "templates", "pad", "pool", "dim", "batch"),
    [(1, 1, 0, 1, 16, 2), (3, 2, 4, 5, 24, 1), (4, 2, 2, 2, 16, 1)],
)
def test_other_cases_equal_a_plain_computation(num_classes, templates, pad, pool, dim, batch):
    """Of one class, with padding and a pool that leaves positions over, and of too many classes."""
    head = Aggregator(dim, templates, padded=pad).eval()
    run_cost.fill_by_name(head)
    image = run_cost.image_maps(dim, batch)
    (text,) = run_cost.given(
        f"text/{num_classes}x{templates}x{dim}", 1, num_classes, templates, dim
    )
    plain = plain_cost.plain_logits(head.state_dict(), image, text, pad, pool)
    ours = run_cost.cost_logits(num_classes, templates, pad, pool, dim, batch)
    np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=0, atol=2e-5)


def test_the_state_dict_has_the_published_names(shared_data):
    lines = shared_data(f"{CASES}/names_B.txt").read_text().splitlines()
    published = {name: ast.literal_eval(shape) for name, shape in (x.split("\t") for x in lines)}
    with torch.device("meta"):
        ours = Aggregator(512, padded=0).state_dict()
        padded = Aggregator(512, padded=256)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == published
    assert sum(p.numel() for p in padded.parameters()) == 2_308_961


@pytest.mark.parametrize(("size", "batch"), [(64, 1), (96, 2)])
def test_dense_features_are_the_published_ones(shared_data, tmp_path, size, batch):
    golden = np.load(shared_data(f"{CASES}/dense_{size}.npz"))["tokens"]
    out = tmp_path / "y.npz"
    run_dense.main(["--size", str(size), "--batch", str(batch), "--out", str(out)])
    tokens = np.load(out)["tokens"]
    np.testing.assert_allclose(tokens, golden, rtol=0, atol=1e-5 * np.abs(golden).max())


def test_variants_differ():
    image = run_dense.image_of(64, 1)
    with torch.inference_mode():
        found = [
            run_dense.small_clip(AlignedConfig(variant=variant))(image).dense_BEhw
            for variant in ("tokens", "value", "value+mlp", "cat-seg", "csa")
        ]
    for first in range(len(found)):
        for second in range(first):
            assert not torch.allclose(found[first], found[second], atol=1e-3)


def test_a_case_runs_from_the_command_line(tmp_path):
    out = tmp_path / "x.npz"
    words = "--K 2 --P 3 --pad 4 --pool 2 --dim 16 --batch 1 --out".split()
    run_cost.main([*words, str(out)])
    logits = np.load(out)["logits"]
    assert logits.shape == (1, 2, 96, 96)
    assert np.isfinite(logits).all()
