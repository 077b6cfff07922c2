"""The cost head beside an image encoder: its guidance from the encoder's blocks, and its scores.

As published (CAT-Seg, Cho et al. 2024) the tokens after a third and after two thirds of a ViT's
blocks guide the decoder, the shallower ones its coarser stage.

Shapes: B batch, K labels, P templates that are channels, C embedding, W channels of a token, h w
patch grid.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.config import HeadConfig
from model.head.aggregator import GUIDANCE_INNER, Aggregator, ImageMaps


def guiding_blocks(depth: int) -> tuple[int, int]:
    """The blocks whose tokens guide the decoder, counted from 0: 3 and 7 of 12, 7 and 15 of 24."""
    return max(0, depth // 3 - 1), max(0, 2 * depth // 3 - 1)


class CostHead(nn.Module):
    """Scores labels by cost aggregation.

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
