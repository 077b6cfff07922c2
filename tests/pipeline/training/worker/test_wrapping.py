"""What makes a training step cheaper changes none of its numbers, on one worker and on two."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from model.config import RegularizerConfig
from model.loss import segmentation_loss
from model.lseg import build_lseg
from pipeline.training.config import TrainConfig
from pipeline.training.driver.launch import plan_run, train
from pipeline.training.worker.wrapping import wrap
from tests.support.mini_shards import tiny_model

CPU = torch.device("cpu")


def losses_and_weights(steps: int = 3, **settings):
    torch.manual_seed(0)
    torch._dynamo.reset()  # It remembers, over tests, which sizes have changed.
    lseg = build_lseg(tiny_model(activation_checkpointing=settings.pop("recompute", False)), 512)
    network = wrap(lseg.train(), TrainConfig(**settings), CPU, world=1)
    optimizer = torch.optim.SGD(lseg.parameter_groups(0.01), momentum=0.9)
    text = torch.randn(7, 512)
    found = []
    for step in range(steps):
        image = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
        label = torch.randint(0, 5 + step, (2, 48, 48))  # the question differs by step
        logits = network(lseg.normalize(image), text[: 5 + step])
        loss, count = segmentation_loss(logits, label)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        found.append(loss.detach())
    return found, lseg.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"channels_last": "on"},
        {"recompute": True},
        pytest.param({"compile": True, "channels_last": "on"}, marks=pytest.mark.long),
    ],
)
def test_the_same_losses_and_weights(settings):
    expected_losses, expected = losses_and_weights(channels_last="off")
    losses, weights = losses_and_weights(**settings)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-3)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.float().norm()), 1e-3)
        assert float((weights[name].float() - value.float()).norm()) <= 1e-3 * scale, name


def test_channels_last_is_what_convolutions_see():
    lseg = build_lseg(tiny_model(), 512)
    wrap(lseg, TrainConfig(channels_last="on"), CPU, world=1)
    image = lseg.normalize(torch.zeros(2, 48, 48, 3, dtype=torch.uint8))
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert lseg.decoder.adapt[0].weight.is_contiguous(memory_format=torch.channels_last)
    plain = build_lseg(tiny_model(), 512)
    wrap(plain, TrainConfig(), CPU, world=1)  # `auto` is off on CPUs
    assert plain.normalize(torch.zeros(2, 48, 48, 3, dtype=torch.uint8)).is_contiguous()


@pytest.mark.long  # two runs of two workers, and a compilation on each worker
def test_compiled_runs_of_two_workers_train_as_plain_ones_do(mini_shards, tmp_path):
    weights = []
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = {"steps": 2, "accumulate": 2, "batch_size": 8, "compile": compiled}
        config = mini_shards.config(tmp_path, name, num_workers=2, **settings)
        block = RegularizerConfig(kind="bottleneck", depth=2, activation="lrelu")
        outcome = train(plan_run(replace(config, model=tiny_model(regularizer=block))))
        weights.append(load_file(f"{outcome.checkpoint}/model.safetensors"))
    for name, value in weights[0].items():
        scale = max(float(value.float().norm()), 1e-3)
        assert float((weights[1][name].float() - value.float()).norm()) <= 1e-3 * scale, name
