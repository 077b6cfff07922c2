"""The image encoders: images in, features out; a timm ViT or CNN.

The room's interface: `build_backbone` makes what a configuration names. A `TokenBackbone` or a
`PyramidBackbone` gives four levels of features for a normalised image; where `AlignedWanted` asks
for it, an `AlignedVit` gives features that lie in the space of its text encoder. Whether the
weights that a configuration names can be had is asked before anything is built.
"""

from model.backbone.aligned import AlignedFeatures, AlignedVit
from model.backbone.build import AlignedWanted, Backbone, build_backbone
from model.backbone.levels import (
    LEVEL_STRIDES,
    PyramidBackbone,
    TokenBackbone,
    TokenLevel,
    hooks_of,
    quarter_ends,
)
from model.backbone.timm_models import named_in_full
from model.backbone.weights import (
    has_own_weights,
    own_file,
    require_backbone_weights,
    require_own_file,
)

__all__ = [
    "LEVEL_STRIDES",
    "AlignedFeatures",
    "AlignedVit",
    "AlignedWanted",
    "Backbone",
    "PyramidBackbone",
    "TokenBackbone",
    "TokenLevel",
    "build_backbone",
    "has_own_weights",
    "hooks_of",
    "named_in_full",
    "own_file",
    "quarter_ends",
    "require_backbone_weights",
    "require_own_file",
]
