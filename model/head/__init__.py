"""The heads: features of images and vectors of labels in, scores out.

The room's interface: `head_of` names the class of `Head` that a configuration means. `dot` is
LSeg's, with its decoder (`dpt`) and the cosines of its pixels (`scoring`). `cost` is CAT-Seg's:
cosines of dense features that are in the text's space already, refined as a cost volume
(`aggregator`).
"""

from model.config import ModelConfig
from model.head.cost import CostHead
from model.head.dot import LOGIT_SCALE, AlignedDotHead, DotHead
from model.head.interface import Head

HEADS: dict[str, type[Head]] = {
    "dot": DotHead,
    "dot-aligned": AlignedDotHead,
    "cost": CostHead,
}

__all__ = ["HEADS", "LOGIT_SCALE", "AlignedDotHead", "CostHead", "DotHead", "Head", "head_of"]


def head_of(config: ModelConfig) -> type[Head]:
    """The class of the head that a configuration names."""
    return HEADS[config.head.kind]
