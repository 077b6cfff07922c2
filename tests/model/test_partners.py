import open_clip
import pytest
import timm

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


def test_what_is_not_published_weights_is_left_to_its_user():
    name = "vit_base_patch16_clip_224.laion2b"
    with pytest.raises(ModelError):
        require_partner(config(name, "ViT-B-16", "openai"))
    require_partner(config(name, "ViT-B-16", "openai", pretrained=False))
    require_partner(config(name, "ViT-B-16", "mine.safetensors"))
    require_partner(config(name, "stand-in", "openai"))
    overlay = {"pretrained_cfg_overlay": {"file": "mine.safetensors"}}
    require_partner(config(name, "ViT-B-16", "openai", kwargs=overlay))
    require_partner(config("vit_base_patch16_384", "ViT-B-16", "openai"))
