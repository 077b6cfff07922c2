import open_clip
import pytest
import timm

from model.backbone import build
from model.backbone.build import require_own_activation
from model.config import BackboneConfig, ModelConfig, TextConfig
from model.errors import ModelError
from model.partners import PARTNERS, require_partner


def config(name: str, encoder: str, tag: str, **backbone: object) -> ModelConfig:
    return ModelConfig(
        backbone=BackboneConfig(name=name, **backbone),  # type: ignore[arg-type]
        text=TextConfig(encoder=encoder, pretrained=tag),
    )


def test_both_libraries_know_every_pair():
    images, texts = set(timm.list_pretrained()), set(open_clip.list_pretrained())
    assert PARTNERS.keys() <= images
    assert {(names[-1], tag) for names, tag in PARTNERS.values()} <= texts


@pytest.mark.parametrize("name", PARTNERS)
def test_the_right_pair_is_taken_and_another_is_refused(name):
    names, tag = PARTNERS[name]
    for encoder in names:
        require_partner(config(name, encoder, tag))
    with pytest.raises(ModelError, match=f"set model.text.encoder to {names[0]} and"):
        require_partner(config(name, names[0], "another"))
    with pytest.raises(ModelError, match=r"is not the text tower that model.backbone.name="):
        require_partner(config(name, "RN50", tag))


def test_a_name_without_a_tag_is_the_one_that_timm_loads():
    metaclip = config("vit_base_patch16_clip_quickgelu_224", "ViT-B-16-quickgelu", "openai")
    require_partner(metaclip)  # Of Meta's training, whose tower the table does not know.
    eva = "eva02_base_patch16_clip_224"
    require_partner(config(eva, "EVA02-B-16", "merged2b_s8b_b131k"))
    with pytest.raises(ModelError, match=rf"{eva}.merged2b was trained with: set"):
        require_partner(config(eva, "ViT-B-16", "openai"))
    with pytest.raises(ModelError, match="laion2b_ft_in12k_in1k, which was trained further on"):
        require_partner(config("vit_base_patch16_clip_224", "ViT-B-16", "openai"))


def test_quickgelu_is_asked_of_a_name_without_a_tag_too(monkeypatch):
    require_own_activation(BackboneConfig(name="vit_base_patch16_clip_224"))
    monkeypatch.setattr(build, "named_in_full", lambda name: f"{name}.openai")
    with pytest.raises(ModelError, match=r"name vit_base_patch16_clip_quickgelu_224.openai"):
        require_own_activation(BackboneConfig(name="vit_base_patch16_clip_224"))
    require_own_activation(BackboneConfig(name="vit_base_patch16_clip_224", pretrained=False))


def test_what_is_not_published_weights_is_left_to_its_user():
    name = "vit_base_patch16_clip_224.laion2b"
    with pytest.raises(ModelError):
        require_partner(config(name, "ViT-B-16", "openai"))
    require_partner(config(name, "ViT-B-16", "openai", pretrained=False))
    require_partner(config(name, "ViT-B-16", "mine.safetensors"))
    require_partner(config(name, "stand-in", "openai"))
    require_partner(config(name, "one-hot", "openai"))
    require_partner(config(name, "table:words.txt", "openai"))
    require_partner(config(name, "ViT-B-16", "openai", weights="mine.safetensors"))
    overlay = {"pretrained_cfg_overlay": {"file": "mine.safetensors"}}
    require_partner(config(name, "ViT-B-16", "openai", kwargs=overlay))
    require_partner(config("vit_base_patch16_384", "ViT-B-16", "openai"))
