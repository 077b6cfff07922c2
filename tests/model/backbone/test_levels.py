import pytest
import torch
import torchvision

from model.backbone import PyramidBackbone, TokenBackbone, build_backbone
from model.config import BackboneConfig, ModelConfig
from model.errors import ModelError
from model.lseg import build_lseg

TINY = {"patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}

FAMILIES = {
    "tiny ViT, patch 8": ("vit_tiny_patch16_224", TINY),
    "ViT, patch 14, registers": (
        "vit_small_patch14_reg4_dinov2",
        {"depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 56},
    ),
    "ViT, patch 16, no class token in the positions": (
        "vit_tiny_patch16_224",
        {"depth": 4, "embed_dim": 48, "num_heads": 3, "no_embed_class": True},
    ),
    "ViT without a class token": (
        "vit_base_patch16_siglip_224",
        {"depth": 4, "embed_dim": 48, "num_heads": 3},
    ),
    "DINOv3, rotary positions": (
        "vit_small_patch16_dinov3",
        {"depth": 4, "embed_dim": 48, "num_heads": 3},
    ),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "ResNet": ("resnet18", {}),
    "Swin, channels last": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 24, "strict_img_size": False},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 96), (49, 70)])
def test_every_family_gives_half_resolution_unit_vectors_and_gradients(family, size):
    name, kwargs = FAMILIES[family]
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name=name, pretrained=False, kwargs=kwargs), features=16
    )
    lseg = build_lseg(config, embed_dim=24)
    pixels = lseg.embed(torch.randn(2, 3, *size))
    assert pixels.shape == (2, 24, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(pixels.norm(dim=1), torch.ones_like(pixels[:, 0]))
    lseg(torch.randn(2, 3, *size), torch.randn(3, 24)).square().sum().backward()
    # DDP stops at a parameter that gets no gradient.
    assert [name for name, p in lseg.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "hooks"),
    [
        ("vit_base_patch32_384", (2, 5, 8, 11)),
        ("vit_base_patch16_384", (2, 5, 8, 11)),
        ("vit_large_patch16_384", (5, 11, 17, 23)),
        ("vit_small_patch16_dinov3", (2, 5, 8, 11)),
    ],
)
def test_hooks_end_each_quarter_of_the_depth(name, hooks):
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name, pretrained=False))
    assert isinstance(backbone, TokenBackbone)
    assert backbone.hooks == hooks


def test_hooks_can_be_chosen_and_later_blocks_are_not_built():
    config = BackboneConfig(
        name="vit_tiny_patch16_224", pretrained=False, hooks=(0, 1, 1, 2), kwargs=TINY
    )
    backbone = build_backbone(config)
    assert isinstance(backbone, TokenBackbone)
    assert len(backbone.vit.blocks) == 3
    levels = backbone(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(levels[1].tokens_BNC, levels[2].tokens_BNC)
    assert not torch.equal(levels[2].tokens_BNC, levels[3].tokens_BNC)


def test_positions_are_resized_in_the_graph_and_kept_at_their_own_size():
    backbone = build_backbone(
        BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=TINY)
    )
    assert isinstance(backbone, TokenBackbone)
    learned = backbone.vit.pos_embed
    assert backbone._positions(1, (8, 8)) is learned
    resized = backbone._positions(1, (12, 5))
    assert resized.shape == (1, 1 + 60, 48)
    expected = torch.nn.functional.interpolate(
        learned[:, 1:].transpose(1, 2).unflatten(2, (8, 8)), (12, 5), mode="bilinear"
    )
    torch.testing.assert_close(resized[:, 1:], expected.flatten(2).transpose(1, 2))
    resized.sum().backward()
    assert learned.grad is not None


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=TINY)
        backbone = build_backbone(config, activation_checkpointing=recompute).train()
        torch.manual_seed(1)
        image = torch.randn(1, 3, 64, 64)
        sum(level.tokens_BNC.square().mean() for level in backbone(image)).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_attention_is_the_fused_one(name, monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def count(*args, **kwargs):
        calls.append(args[0].shape)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    kwargs = {"depth": 4, "embed_dim": 48, "num_heads": 3}
    backbone = build_backbone(BackboneConfig(name=name, pretrained=False, kwargs=kwargs))
    backbone(torch.randn(1, 3, 64, 64))
    assert len(calls) == 4


def test_resnet101_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet101().eval()
    ours = build_backbone(BackboneConfig(name="resnet101.tv_in1k", pretrained=False)).eval()
    assert isinstance(ours, PyramidBackbone)
    state = {name: value for name, value in theirs.state_dict().items() if "fc." not in name}
    ours.net.load_state_dict(state)
    assert ours.widths == (256, 512, 1024, 2048)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for stage, level in zip(("layer1", "layer2", "layer3", "layer4"), ours(image), strict=True):
            x = getattr(theirs, stage)(x)
            torch.testing.assert_close(level, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="vit_base_patch32_38", pretrained=False), "is no timm model"),
        (
            BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, hooks=(1, 2, 3, 12)),
            "may be 11",
        ),
        (BackboneConfig(name="resnet18", pretrained=False, hooks=(0, 1, 2, 3)), "is a CNN"),
        (
            BackboneConfig(name="resnet18", pretrained=False, kwargs={"output_stride": 8}),
            "needs \\[4, 8, 16, 32\\]",
        ),
        (
            BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs={"dept": 3}),
            "refuses",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(config, message):
    with pytest.raises(ModelError, match=message):
        build_backbone(config)
