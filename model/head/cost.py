"""The cost head: logits by cost aggregation of a backbone's features in the text's space.

As published (CAT-Seg, Cho et al. 2024) the tokens after a third and after two thirds of a ViT's
blocks guide the decoder, the shallower ones its coarser stage.

Shapes: B batch, K labels, P templates that are channels, C embedding, W channels of a token, h w
patch grid.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from model.backbone import AlignedFeatures, AlignedVit, AlignedWanted
from model.config import HeadConfig, ModelConfig
from model.head.aggregator import GUIDANCE_INNER, Aggregator, ImageMaps
from model.head.interface import Head
from model.head.scoring import at_least_float32, full_precision
from model.network import Trunk
from model.text import channels_of
from model.upsampling import upsample


def guiding_blocks(depth: int) -> tuple[int, int]:
    """The blocks whose tokens guide the decoder, counted from 0: 3 and 7 of 12, 7 and 15 of 24."""
    return max(0, depth // 3 - 1), max(0, 2 * depth // 3 - 1)


class GuidedAggregator(nn.Module):
    """The aggregator, and what makes its guidance of a ViT's tokens.

    Args:
        config: its settings.
        width: W.
        embed_dim: C.
        channels: P.
    """

    def __init__(self, config: HeadConfig, width: int, embed_dim: int, channels: int = 1) -> None:
        super().__init__()
        pool = (config.pool, 1)
        self.channels = channels
        self.aggregator = Aggregator(embed_dim, channels, padded=config.padded, pool=pool)
        self.upsample1 = nn.ConvTranspose2d(width, GUIDANCE_INNER[0], 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(width, GUIDANCE_INNER[1], 4, stride=4)

    def guidance(self, taps_BWhw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What guides the decoder: (B, 256, 2h, 2w) and (B, 128, 4h, 4w)."""
        shallow, deep = taps_BWhw
        return self.upsample1(shallow), self.upsample2(deep)

    def forward(self, image: ImageMaps, text_KC: Tensor) -> Tensor:
        """Scores labels, (K, P * C) or (B, K, P * C): (B, K, 4h, 4w), a logit for each alone."""
        text_BKC = text_KC if text_KC.ndim == 3 else text_KC[None]
        return self.aggregator(image, text_BKC.unflatten(2, (self.channels, -1)))


class CostHead(Head):
    """Scores labels by cost aggregation."""

    couples_labels = True
    scores_apart = True

    @staticmethod
    def wanted(config: ModelConfig) -> AlignedWanted:
        """Aligned features, and the tokens that guide."""
        return AlignedWanted(config.head.aligned, guiding_blocks)

    def __init__(self, config: ModelConfig, backbone: AlignedVit, embed_dim: int) -> None:
        channels = channels_of(config.text)
        self.cost = GuidedAggregator(config.head, backbone.width, embed_dim, channels)
        self.stride_px = backbone.patch_px
        self.backbone_rate = {}
        self.head_rate = {"cost": self.cost}

    def trunk(self, features: Any, size: tuple[int, int], cropped: tuple[int, int]) -> Trunk:
        """The aligned features as they are, and the guidance."""
        found: AlignedFeatures = features
        return Trunk(found.dense_BEhw, size, cropped, self.cost.guidance(found.taps))

    def score(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        """A logit for each label alone."""
        dense = trunk.features_BFhw.to(at_least_float32(trunk.features_BFhw))
        logits = self.cost(ImageMaps(dense, trunk.guidance), text_KC.to(dense.device, dense.dtype))
        logits = upsample(logits.to(at_least_float32(logits)), trunk.size)
        return trunk.crop(logits)

    def embed(self, trunk: Trunk) -> Tensor:
        """The backbone's vectors, which the aggregator has not refined."""
        vectors = trunk.features_BFhw
        vectors = upsample(vectors.to(at_least_float32(vectors)), trunk.size)
        with full_precision(vectors):
            return functional.normalize(trunk.crop(vectors), dim=1)
