"""What trains, at which rate and with which penalty."""

import math

import pytest
import torch

from model.config import BackboneConfig, HeadConfig, ModelConfig, TextConfig
from model.lseg import LSeg, build_lseg
from pipeline.errors import UserError
from pipeline.training.config import TrainConfig
from pipeline.training.state.optimizer import build_optimizer, rate

SIZE = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
CAT_SEG = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "weight_decay": 1e-4,
    "decay_norms": False,
    "backbone": "attention-qv",
    "rates": ("^backbone=0.01",),
    "schedule": "cosine",
    "clip_norm": 0.01,
}


def cost_lseg(name: str = "vit_base_patch16_clip_quickgelu_224", **kwargs: object) -> LSeg:
    torch.manual_seed(0)
    backbone = BackboneConfig(name=name, pretrained=False, kwargs={**SIZE, "num_classes": 8})
    head = HeadConfig(kind="cost", padded=8)
    return build_lseg(ModelConfig(backbone=backbone, text=TextConfig(), head=head, **kwargs), 8)


def trained(lseg: LSeg) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in lseg.named_parameters() if p.requires_grad}


def test_the_published_way_trains_queries_and_values_at_a_hundredth():
    lseg = cost_lseg()
    groups = build_optimizer(lseg, TrainConfig(**CAT_SEG)).param_groups
    names = {parameter: name for name, parameter in lseg.named_parameters()}
    settings = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert settings.keys() == trained(lseg).keys()
    backbone = {name for name in settings if name.startswith("backbone.")}
    assert backbone == {f"backbone.vit.blocks.{n}.attn.qkv.weight" for n in (0, 1)}
    assert [settings[name][0] for name in backbone] == pytest.approx([2e-6, 2e-6])
    rest = settings.keys() - backbone
    assert {settings[name][0] for name in rest} == {2e-4}
    norms = {name for name in rest if settings[name][1] == 0}
    assert "cost.aggregator.layers.0.attention.norm1.weight" in norms
    assert "cost.aggregator.layers.0.swin_block.block_1.norm1.bias" in norms
    assert "cost.aggregator.conv1.bias" not in norms
    assert all("norm" in name or "double_conv" in name or ".conv." in name for name in norms)


def test_keys_stay_as_they_are_to_the_bit():
    lseg = cost_lseg()
    before = {name: p.detach().clone() for name, p in lseg.named_parameters()}
    optimizer = build_optimizer(lseg, TrainConfig(**{**CAT_SEG, "lr": 0.1, "weight_decay": 0.1}))
    lseg.train()(torch.randn(1, 3, 32, 32), torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    for name, parameter in lseg.named_parameters():
        if "attn.qkv.weight" in name and "backbone" in name:
            query, key, value = parameter.detach().chunk(3)
            first, kept, last = before[name].chunk(3)
            assert torch.equal(key, kept)
            assert not torch.equal(value, last)
            # Of the last block's queries nothing is asked: each token sees itself alone.
            assert not torch.equal(query, first) or name.startswith("backbone.vit.blocks.1")
        elif name.startswith("backbone."):
            assert torch.equal(parameter.detach(), before[name])


def test_nothing_of_the_backbone_and_patterns_in_their_order():
    lseg = cost_lseg()
    rates = (r"aggregator\.conv1=0", r"^cost\.aggregator=2.0", "^cost=0.5")
    train = TrainConfig(optimizer="adamw", lr=0.1, backbone="none", rates=rates)
    groups = build_optimizer(lseg, train).param_groups
    assert sorted(group["lr"] for group in groups) == [0.05, 0.2]
    assert not any(n.startswith("backbone") or "aggregator.conv1" in n for n in trained(lseg))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rates": ("backbon3=0.1",)}, "backbon3=0.1: is found in no weight.* backbone, cost"),
        ({"rates": (".=0",)}, "must leave something to train"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(cost_lseg(), TrainConfig(**values))


def test_a_pattern_for_frozen_weights_alone_is_refused():
    train = TrainConfig(optimizer="adamw", backbone="none", rates=("^backbone=0.01",))
    with pytest.raises(UserError, match=r"is found in no weight that is trained.* begin with cost"):
        build_optimizer(cost_lseg(), train)


@pytest.mark.parametrize(
    "values", [{"backbone": "none"}, {"rates": (r"^backbone\.=0",)}, {"rates": (r"^backbone\.=1",)}]
)
def test_frozen_normalisation_keeps_its_running_statistics(values):
    config = ModelConfig(backbone=BackboneConfig(name="resnet18", pretrained=False), features=8)
    lseg = build_lseg(config, 8).train()
    build_optimizer(lseg, TrainConfig(**values))
    lseg.eval().train()  # As around a validation.

    def statistics(of_backbone: bool) -> list[torch.Tensor]:
        found = lseg.named_buffers()
        return [b.clone() for n, b in found if n.startswith("backbone.") == of_backbone]

    before = statistics(True), statistics(False)
    lseg(torch.randn(2, 3, 64, 64), torch.randn(3, 8))
    moved = [
        any(not torch.equal(*pair) for pair in zip(old, new, strict=True))
        for old, new in zip(before, (statistics(True), statistics(False)), strict=True)
    ]
    assert moved == [values == {"rates": (r"^backbone\.=1",)}, True]


@pytest.mark.parametrize("rates", ["(=0.1", "^cost=-1", "^cost", "=1", "a=b"])
def test_a_wrong_pattern_or_factor_is_refused(rates):
    with pytest.raises(UserError, match="must be a regular expression and a factor of 0 or more"):
        TrainConfig(rates=(rates,))


def test_a_backbone_without_attention_cannot_train_it_alone():
    config = ModelConfig(backbone=BackboneConfig(name="resnet18", pretrained=False), features=8)
    with torch.device("meta"), pytest.raises(UserError, match="resnet18 has no attention with"):
        build_optimizer(build_lseg(config, 8), TrainConfig(backbone="attention-qv"))


def test_the_cosine_falls_from_one_to_nothing():
    train = TrainConfig(steps=100, schedule="cosine")
    found = [rate(step, train) for step in (0, 25, 50, 100)]
    assert found == pytest.approx([1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0], abs=1e-12)
    assert rate(4, TrainConfig(steps=100, schedule="cosine", warmup_steps=10)) < 0.5
