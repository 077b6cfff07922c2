import pytest
import torch

from model.backbone.aligned import AlignedVit, self_similar_attention
from model.backbone.build import build_aligned
from model.config import AlignedConfig, BackboneConfig
from model.errors import ModelError

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "patch_size": 16}
CLIP = BackboneConfig(
    name="vit_base_patch16_clip_quickgelu_224", pretrained=False, kwargs={**TINY, "num_classes": 20}
)
EVA = BackboneConfig(
    name="eva02_base_patch16_clip_224", pretrained=False, kwargs={**TINY, "num_classes": 20}
)
SIGLIP = BackboneConfig(name="vit_base_patch16_siglip_224", pretrained=False, kwargs=TINY)
PE = BackboneConfig(
    name="vit_pe_core_base_patch16_224",
    pretrained=False,
    kwargs={**TINY, "num_classes": 20, "attn_pool_num_heads": 3},
)
CONVNEXT = BackboneConfig(
    name="convnext_base",
    pretrained=False,
    kwargs={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 20},
)


def built(config: BackboneConfig, variant: str = "tokens", **settings) -> AlignedVit:
    torch.manual_seed(0)
    aligned = AlignedConfig(variant=variant, **settings)  # type: ignore[arg-type]
    return build_aligned(config, aligned).eval()  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("config", [CLIP, EVA], ids=["clip", "eva"])
def test_the_class_token_is_what_the_model_gives_an_image(config):
    tower = built(config, positions="bicubic-antialias")
    image = torch.randn(2, 3, 64, 96)
    found = tower(image)
    assert (found.grid, found.dense_BEhw.shape) == ((4, 6), (2, 20, 4, 6))
    torch.testing.assert_close(found.tokens_BNE[:, 0], tower.vit(image))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["tokens", "value+mlp"])
def test_a_pooled_model_sees_each_position_as_an_image_of_it(variant):
    tower = built(SIGLIP, variant, positions="bicubic-antialias")
    patch = torch.randn(2, 3, 16, 16)
    found = tower(patch)  # One token sees itself alone, whatever the attention.
    torch.testing.assert_close(found.dense_BEhw[:, :, 0, 0], tower.vit(patch))


@torch.no_grad()
def test_a_convnext_projects_every_position():
    tower = built(CONVNEXT)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tower(image).dense_BEhw[:, :, 0, 0], tower.net(image))
    assert tower(torch.randn(1, 3, 64, 96)).dense_BEhw.shape == (1, 20, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("config", [EVA, SIGLIP, PE], ids=["eva", "siglip", "pe"])
@pytest.mark.parametrize("variant", ["value", "value+mlp", "csa"])
def test_families_have_the_variants(config, variant):
    found = built(config, variant)(torch.randn(1, 3, 48, 64))
    assert found.dense_BEhw.shape[2:] == (3, 4)
    assert found.dense_BEhw.isfinite().all()


@torch.no_grad()
def test_csa_adds_both_similarities():
    attention = built(CLIP).vit.blocks[-1].attn
    x = torch.randn(2, 5, 48)
    query, key, value = (
        part.unflatten(2, (3, 16)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2)
    )
    weights = sum((t @ t.transpose(2, 3) / 4).softmax(-1) for t in (query, key))
    plain = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(self_similar_attention(attention, x, None), plain)


@torch.no_grad()
def test_csa_turns_with_rotary_positions():
    attention = built(EVA).vit.blocks[-1].attn
    x, rope = torch.randn(1, 5, 48), torch.randn(4, 32)
    still = self_similar_attention(attention, x, None)
    assert not torch.allclose(self_similar_attention(attention, x, rope), still, atol=1e-4)


@torch.no_grad()
def test_taps_are_the_tokens_after_their_blocks():
    tower = build_aligned(CLIP, AlignedConfig(), taps=lambda depth: (0, 1)).eval()
    seen = []
    tower.vit.blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
    found = tower(torch.randn(1, 3, 64, 64))
    assert [tap.shape for tap in found.taps] == [(1, 48, 4, 4)] * 2
    torch.testing.assert_close(found.taps[0].flatten(2).transpose(1, 2), seen[0][:, 1:])


def test_positions_can_be_resized_in_three_ways():
    image = torch.randn(1, 3, 96, 96)
    ways = ("bicubic", "bicubic-antialias", "bilinear")
    with torch.no_grad():
        found = [built(CLIP, positions=way)(image).dense_BEhw for way in ways]
        small = [built(CLIP, positions=way)(image[..., :64, :64]).dense_BEhw for way in ways]
    assert not torch.equal(found[0], found[2])
    assert torch.equal(small[0], small[1])
    assert torch.equal(small[0], small[2])


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("vit_base_patch16_clip_224.openai", "tokens", "name vit_base_patch16_clip_quickgelu_224"),
        ("vit_base_patch16_siglip_224", "cat-seg", "no class token.*choose value.mlp"),
        ("resnet18", "tokens", "no ViT of CLIP's kind"),
        ("vitamin_small_224", "tokens", "no ViT of CLIP's kind"),
        ("convnext_base", "value", "no attention.*set it to tokens"),
    ],
)
def test_what_has_no_such_features_is_refused(name, variant, message):
    with pytest.raises(ModelError, match=message), torch.device("meta"):
        build_aligned(BackboneConfig(name=name, pretrained=False), AlignedConfig(variant=variant))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ModelError, match=r"aligned.variant='maskclip': must be one of tokens"):
        AlignedConfig(variant="maskclip")  # type: ignore[arg-type]
