"""Runs of `train()` on a real Ray: two workers train the weights that one worker trains."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.training.config import OtherConfig, TrainMixConfig
from pipeline.training.driver.launch import Outcome, plan_run, train


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(f"{outcome.checkpoint}/model.safetensors")


def start_weights(config: TrainMixConfig) -> dict[str, torch.Tensor]:
    """What the run began with."""
    from model.lseg import build_lseg

    torch.manual_seed(config.run.seed)
    return build_lseg(config.model, 512).state_dict()


@pytest.mark.slow
def test_two_workers_train_as_one_does(mini_shards, tmp_path):
    # With "other", and with crops that are partly padding: labelled pixels differ by worker.
    settings = {"steps": 3, "other": OtherConfig(share=0.7), "clip_norm": 1.0}
    one = mini_shards.config(tmp_path, "one", num_workers=1, **settings)
    two = mini_shards.config(tmp_path, "two", num_workers=2, **settings)
    outcomes = train(plan_run(one)), train(plan_run(two))
    found, expected = weights(outcomes[1]), weights(outcomes[0])
    assert found.keys() == expected.keys()
    before = start_weights(one)
    moved = {name for name, value in expected.items() if not torch.equal(value, before[name])}
    assert len(moved) > 0.8 * len(expected)
    for name, value in expected.items():
        # Relative to how far a tensor has moved or to its size, whichever is larger.
        scale = max(float(value.float().norm()), 1e-3)
        assert float((found[name].float() - value.float()).norm()) <= 1e-4 * scale, name
    one_metrics, two_metrics = outcomes[0].metrics, outcomes[1].metrics
    assert one_metrics["step"] == two_metrics["step"] == 3
    assert two_metrics["train/loss"] == pytest.approx(one_metrics["train/loss"], rel=1e-4)
    assert two_metrics["train/grad_norm"] == pytest.approx(one_metrics["train/grad_norm"], rel=1e-3)
    for name in ("ade20k", "cityscapes", "coco_panoptic"):
        key = f"val/{name}/pixel_accuracy"
        assert two_metrics[key] == pytest.approx(one_metrics[key], abs=2e-3)


@pytest.mark.long
def test_gradients_that_are_exchanged_in_16_bits_train_nearly_the_same(mini_shards, tmp_path):
    found = {}
    for dtype in ("fp32", "bf16"):
        config = mini_shards.config(
            tmp_path, dtype, num_workers=2, steps=3, accumulate=2, gradient_dtype=dtype
        )
        found[dtype] = weights(train(plan_run(config)))
    before = start_weights(config)
    change = {
        dtype: torch.cat([(value.float() - before[name].float()).flatten() for name, value in
                          tensors.items()])
        for dtype, tensors in found.items()
    }  # fmt: skip
    apart = (change["bf16"] - change["fp32"]).norm() / change["fp32"].norm()
    # Eight bits of mantissa round by up to 0.4 %; the same change would mean that nothing did.
    assert 1e-5 < float(apart) < 0.01


def test_one_worker_exchanges_no_gradients(mini_shards, tmp_path):
    with pytest.raises(UserError, match=r"train\.gradient_dtype=bf16: one worker"):
        mini_shards.config(tmp_path, "alone", gradient_dtype="bf16")


def test_batch_and_workers_must_fit(mini_shards, tmp_path):
    config = mini_shards.config(tmp_path, "odd")
    with pytest.raises(UserError, match=r"train\.batch_size=4: must be a multiple of .* = 3"):
        replace(config, cluster=replace(config.cluster, num_workers=3))
