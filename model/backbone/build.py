"""Which image encoder a configuration means: the one way into this room.

A network either wants four levels of features, from any ViT or CNN, or features that lie in the
space of its text encoder, from a ViT of CLIP's kind; `AlignedWanted` says which blocks of that one
give their tokens too.
"""

from typing import NamedTuple

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from model.backbone.aligned import AlignedConvNext, AlignedVit, Taps, no_taps
from model.backbone.levels import PyramidBackbone, TokenBackbone
from model.backbone.timm_models import named_in_full, probe
from model.config import AlignedConfig, BackboneConfig
from model.errors import ModelError

Backbone = TokenBackbone | PyramidBackbone | AlignedVit
"""A module from normalised images to features, with `mean` and `std` of the normalisation."""


class AlignedWanted(NamedTuple):
    """The wish for features in the space of the text encoder."""

    aligned: AlignedConfig
    """How they are made."""
    taps: Taps = no_taps
    """The blocks whose tokens are given too."""


def build_backbone(
    config: BackboneConfig,
    wanted: AlignedWanted | None = None,
    activation_checkpointing: bool = False,
) -> Backbone:
    """Builds the image encoder that a configuration names.

    Args:
        config: a timm model.
        wanted: the wish for aligned features; None: four levels.
        activation_checkpointing: recompute the blocks of a ViT in the backward pass.

    Raises:
        ModelError: an unknown name, weights that could not be fetched, or a model that does not
            give what is wanted.
    """
    if wanted is not None:
        return build_aligned_vit(config, wanted.aligned, wanted.taps, activation_checkpointing)
    outline = probe(config.name)
    if hasattr(outline, "blocks") and hasattr(outline, "patch_embed"):
        return TokenBackbone(config, activation_checkpointing)
    if activation_checkpointing:
        raise ModelError(
            f"model.activation_checkpointing=true: {config.name} is a CNN, only ViTs recompute: "
            "set it to false"
        )
    return PyramidBackbone(config)


def build_aligned(
    config: BackboneConfig, aligned: AlignedConfig, taps: Taps = no_taps
) -> AlignedVit | AlignedConvNext:
    """Builds an image encoder with dense features in the space of its text tower.

    Args:
        config: a timm model of CLIP's kind.
        aligned: which variant.
        taps: which blocks of a ViT give their tokens too.

    Raises:
        ModelError: the model has no such features, or computes another activation than its weights
            were trained with.
    """
    outline = probe(config.name)
    if hasattr(outline, "stages") and hasattr(outline, "forward_head"):
        return AlignedConvNext(config, aligned)
    return build_aligned_vit(config, aligned, taps)


def build_aligned_vit(
    config: BackboneConfig,
    aligned: AlignedConfig,
    taps: Taps = no_taps,
    activation_checkpointing: bool = False,
) -> AlignedVit:
    """Builds a ViT as `build_aligned` does, and refuses all else.

    Raises:
        ModelError: as there, or the model is no such ViT.
    """
    require_own_activation(config)
    outline = probe(config.name)
    known = isinstance(outline, VisionTransformer | Eva) and hasattr(outline.patch_embed, "norm")
    if not known or getattr(outline, "rope_mixed", False):
        raise ModelError(
            f"model.backbone.name={config.name}: is no ViT of CLIP's kind, so that it has no "
            "features in the space of a text tower: choose one, such as "
            "vit_base_patch16_clip_quickgelu_224.openai"
        )
    return AlignedVit(config, aligned, taps, activation_checkpointing)


QUICK_GELU_TAGS = ("openai", "dfn5b", "metaclip")
"""Beginnings of the tags of weights that were trained with QuickGELU."""


def require_own_activation(config: BackboneConfig) -> None:
    """Refuses weights under a name that computes GELU where they were trained with QuickGELU.

    Raises:
        ModelError: names the model to choose.
    """
    full = named_in_full(config.name) if config.pretrained else config.name
    name, _, tag = full.partition(".")
    if "_clip_" not in name or "quickgelu" in name or not tag.startswith(QUICK_GELU_TAGS):
        return
    right = name.replace("_clip_", "_clip_quickgelu_")
    raise ModelError(
        f"model.backbone.name={full}: its weights were trained with QuickGELU, and this "
        f"name computes GELU, which gives other features: name {right}.{tag}"
    )
