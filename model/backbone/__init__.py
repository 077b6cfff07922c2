"""The image encoders: a timm ViT or CNN, tapped at four levels.

The room's interface: `build_backbone` makes what a configuration names, and both kinds give four
levels of features for a normalised image; `build_aligned_vit` makes one whose features lie in the
space of its text encoder.
"""

from model.backbone.aligned import AlignedFeatures, AlignedVit, Taps, build_aligned_vit
from model.backbone.levels import (
    LEVEL_STRIDES,
    PyramidBackbone,
    TokenBackbone,
    TokenLevel,
    build_backbone,
    hooks_of,
    named_in_full,
    quarter_ends,
)

__all__ = [
    "LEVEL_STRIDES",
    "AlignedFeatures",
    "AlignedVit",
    "PyramidBackbone",
    "Taps",
    "TokenBackbone",
    "TokenLevel",
    "build_aligned_vit",
    "build_backbone",
    "hooks_of",
    "named_in_full",
    "quarter_ends",
]
