"""Cost aggregation: logits from the cosines of dense image features and label vectors.

CAT-Seg (Cho et al. 2024, arXiv:2303.11797). The cosine map of every class is embedded, refined
over positions and over classes in turn, and upsampled with the image's guidance. Every class is
scored by the same weights, so that any labels can be asked; but the score of one depends on the
others. Names of parameters are those of the published checkpoints.

Shapes: B batch, K classes, P templates, C embedding, D hidden channels, h w patch grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.head.cost_attention import ClassBlock, SwinPair, over_parts
from model.head.cost_decoder import Up

HIDDEN = 128
NUM_LAYERS = 2
DECODER_CHANNELS = (64, 32)
GUIDANCE_INNER = (256, 128)
"""Channels of the two maps that guide the decoder."""
GUIDANCE_CHANNELS = (32, 16)
LEFT_OUT = -100.0
"""The logit of classes that do not go on, where more are asked than `padded`."""


class ImageMaps(NamedTuple):
    """What the aggregator sees of an image; nothing in it depends on the labels."""

    dense_BChw: Tensor
    """Features in the space of the label vectors, of any length."""
    guidance_BGhw: tuple[Tensor, ...]
    """(B, 256, 2h, 2w) and (B, 128, 4h, 4w)."""


class AggregatorLayer(nn.Module):
    """Positions, then classes."""

    def __init__(self, padded: int) -> None:
        super().__init__()
        self.swin_block = SwinPair(HIDDEN, HIDDEN)
        self.attention = ClassBlock(HIDDEN, HIDDEN, padded)

    def forward(
        self, x_BKhwD: Tensor, appearance_BhwD: Tensor, text_BKD: Tensor, pool: int
    ) -> Tensor:
        """Refines the maps of all classes."""
        return self.attention(self.swin_block(x_BKhwD, appearance_BhwD), text_BKD, pool)


class Aggregator(nn.Module):
    """The head, from dense features and label vectors to logits.

    Args:
        embed_dim: C.
        num_templates: P, which are channels of the cosine maps.
        padded: fewer classes are filled up to this number with a learned one, and of more only
            the best go on; 0 for neither.
        pool: side of the squares of positions that the attention over classes sees as one, while
            training and afterwards.
    """

    def __init__(
        self,
        embed_dim: int,
        num_templates: int = 1,
        padded: int = 256,
        pool: tuple[int, int] = (2, 1),
    ) -> None:
        super().__init__()
        self.padded, self.pool = padded, pool
        self.layers = nn.ModuleList(AggregatorLayer(padded) for _ in range(NUM_LAYERS))
        self.conv1 = nn.Conv2d(num_templates, HIDDEN, 7, padding=3)
        self.guidance_projection = nn.Sequential(
            nn.Conv2d(embed_dim, HIDDEN, 3, padding=1), nn.ReLU()
        )
        self.text_guidance_projection = nn.Sequential(nn.Linear(embed_dim, HIDDEN), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU())
            for inner, outer in zip(GUIDANCE_INNER, GUIDANCE_CHANNELS, strict=True)
        )
        self.decoder1 = Up(HIDDEN, DECODER_CHANNELS[0], GUIDANCE_CHANNELS[0])
        self.decoder2 = Up(DECODER_CHANNELS[0], DECODER_CHANNELS[1], GUIDANCE_CHANNELS[1])
        self.head = nn.Conv2d(DECODER_CHANNELS[1], 1, 3, padding=1)

    def forward(self, image: ImageMaps, text_BKPC: Tensor) -> Tensor:
        """Scores classes.

        Args:
            image: what is seen.
            text_BKPC: label vectors of any length; one set for all images where its B is 1.

        Returns:
            logits: (B, K, 4h, 4w).
        """
        dense = functional.normalize(image.dense_BChw, dim=1)
        text = functional.normalize(text_BKPC, dim=-1)
        # By shape, not len(), which would fix the number of images in an exported graph.
        everywhere = text.expand(dense.shape[0], -1, -1, -1)
        cosines_BPKhw = torch.einsum("bchw,bkpc->bpkhw", dense, everywhere)
        if not self._leaves_out(text.shape[1]):
            return self._aggregate(image, cosines_BPKhw, text_BKPC)
        count = torch.sym_min(self.padded, text.shape[1])
        best_BK = cosines_BPKhw.amax((1, 3, 4)).topk(count, dim=1).indices
        # The best ones of each image, which go on with their vectors at length 1, as published.
        chosen = best_BK[:, :, None, None].expand(-1, -1, *text.shape[2:])
        text = text.expand(dense.shape[0], -1, -1, -1).gather(1, chosen)
        places = best_BK[:, None, :, None, None]
        cosines = cosines_BPKhw.gather(
            2, places.expand(-1, cosines_BPKhw.shape[1], -1, *dense.shape[2:])
        )
        logits = self._aggregate(image, cosines, text)
        size = (dense.shape[0], text_BKPC.shape[1], *logits.shape[2:])
        places = best_BK[:, :, None, None].expand_as(logits)
        return logits.new_full(size, LEFT_OUT).scatter(1, places, logits)

    def _leaves_out(self, num_classes: int) -> bool:
        """Whether only some go on; an exported graph always chooses, if need be all of them."""
        if torch.compiler.is_exporting():
            return self.padded > 0
        return 0 < self.padded < num_classes

    def _aggregate(self, image: ImageMaps, cosines_BPKhw: Tensor, text_BKPC: Tensor) -> Tensor:
        appearance = self.guidance_projection(image.dense_BChw).permute(0, 2, 3, 1)
        text = functional.normalize(text_BKPC.mean(2), dim=-1)
        text_guidance = self.text_guidance_projection(text)
        maps = cosines_BPKhw.transpose(1, 2)  # (B, K, P, h, w)
        x_BKhwD = self.conv1(maps.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, maps.shape[:2])
        pool = self.pool[0] if self.training else self.pool[1]
        for layer in self.layers:
            x_BKhwD = layer(x_BKhwD, appearance, text_guidance, pool)
        guidance = [
            project(map_BGhw)
            for project, map_BGhw in zip(
                self.decoder_guidance_projection, image.guidance_BGhw, strict=True
            )
        ]

        def decode(some_BKhwD: Tensor) -> Tensor:
            return self._decode(some_BKhwD, guidance)

        # The last stage holds some four maps at four times the grid.
        held = 4 * 16 * DECODER_CHANNELS[0] * x_BKhwD[:, 0, :, :, 0].numel()
        return over_parts(decode, x_BKhwD, held)

    def _decode(self, x_BKhwD: Tensor, guidance: Sequence[Tensor]) -> Tensor:
        maps = self.decoder1(x_BKhwD.permute(0, 1, 4, 2, 3), guidance[0])
        maps = self.decoder2(maps, guidance[1])
        return self.head(maps.flatten(0, 1)).flatten(0, 1).unflatten(0, maps.shape[:2])
