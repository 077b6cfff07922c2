"""From a map of each class at the grid of the patches to its logits at four times that grid.

The upsampling decoder of CAT-Seg (Cho et al. 2024, section 3.4): two stages, each a transposed
convolution, beside which the image's guidance goes into two convolutions. Names of parameters are
the published ones. The guidance is the same for all classes: its part of the first convolution is
computed once.

Shapes: B batch, K classes, h w cost map, C channels, G channels of the guidance.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

GROUP = 16
"""Channels that are normalised together."""


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, GroupNorm, ReLU."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False),
            nn.GroupNorm(outer // GROUP, outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            nn.GroupNorm(outer // GROUP, outer),
            nn.ReLU(),
        )


class Up(nn.Module):
    """Doubles the sides of every class's map, and refines it by the image's guidance.

    Args:
        inner: channels of the map before.
        outer: channels of it after.
        guidance: channels of the guidance.
    """

    def __init__(self, inner: int, outer: int, guidance: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inner, inner - guidance, 2, stride=2)
        self.conv = DoubleConv(inner, outer)

    def forward(self, x_BKChw: Tensor, guidance_BGhw: Tensor) -> Tensor:
        """Gives (B, K, outer, 2h, 2w).

        Args:
            x_BKChw: the maps.
            guidance_BGhw: (B, G, 2h, 2w).
        """
        first, *rest = self.conv.double_conv
        weight = cast(nn.Conv2d, first).weight
        large = self.up(x_BKChw.flatten(0, 1))
        guided = functional.conv2d(guidance_BGhw, weight[:, large.shape[1] :], padding=1)
        mixed = functional.conv2d(large, weight[:, : large.shape[1]], padding=1)
        mixed = (mixed.unflatten(0, x_BKChw.shape[:2]) + guided[:, None]).flatten(0, 1)
        for layer in rest:
            mixed = layer(mixed)
        return mixed.unflatten(0, x_BKChw.shape[:2])
