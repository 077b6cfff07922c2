"""The image encoders: a timm ViT or CNN, tapped at four levels.

The room's interface: `build_backbone` makes what a configuration names, and both kinds give four
levels of features for a normalised image.
"""

from model.backbone.levels import (
    LEVEL_STRIDES,
    PyramidBackbone,
    TokenBackbone,
    TokenLevel,
    build_backbone,
    quarter_ends,
)

__all__ = [
    "LEVEL_STRIDES",
    "PyramidBackbone",
    "TokenBackbone",
    "TokenLevel",
    "build_backbone",
    "quarter_ends",
]
