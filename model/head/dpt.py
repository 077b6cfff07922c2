"""The decoder of the dense prediction transformer: reassemble and fusion.

Ranftl et al. 2021 (Vision Transformers for Dense Prediction), with BatchNorm in the fusion stages
and the `project` readout, as LSeg uses it. Every ViT level becomes a map at 4, 8, 16 or 32 pixels
for a patch of any power of two:

    patch    level 1     level 2     level 3     level 4
    32       x8          x4          x2          -            xS: transposed convolution, k = s = S
    16       x4          x2          -           /2           /S: convolution, k = S + 1, stride S
    8        x2          -           /2          /4
    14       as 16 (the last upsampling then goes to half the input, whatever the factor)

Shapes: B batch, C channels, N tokens, h w feature map.
"""

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from model.backbone import LEVEL_STRIDES, TokenLevel


def upsample_x2(map_BChw: Tensor) -> Tensor:
    """Doubles both sides, bilinearly, corner pixels on corner pixels."""
    return functional.interpolate(map_BChw, scale_factor=2, mode="bilinear", align_corners=True)


def reassemble_factors(patch_px: int) -> tuple[float, ...]:
    """Gives the factor by which the token grid grows (above 1) or shrinks at each level."""
    power_of_two = 2 ** round(math.log2(patch_px))
    return tuple(power_of_two / stride for stride in LEVEL_STRIDES)


class Reassemble(nn.Module):
    """Turns the tokens of one level into a feature map.

    The class token is projected into every patch token (readout `project`): linear over
    (token, class token), then GELU. Without a class token the patch tokens stay as they are.
    """

    def __init__(self, width: int, channels: int, factor: float, has_class_token: bool) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * width, width) if has_class_token else None
        self.project = nn.Conv2d(width, channels, 1)
        self.resample: nn.Module = nn.Identity()
        if factor > 1:
            size = round(factor)
            self.resample = nn.ConvTranspose2d(channels, channels, size, stride=size)
        elif factor < 1:
            step = round(1 / factor)
            self.resample = nn.Conv2d(channels, channels, step + 1, stride=step, padding=step // 2)

    def forward(self, level: TokenLevel) -> Tensor:
        """Makes (B, channels, h * factor, w * factor) of one block's tokens (B, h * w, width)."""
        tokens_BNC = level.tokens_BNC
        if self.readout is not None and level.class_BC is not None:
            # linear(concat(token, class)) in two halves: the class half once per image, not per
            # token.
            width = tokens_BNC.shape[2]
            weight = self.readout.weight
            shared_BC = functional.linear(level.class_BC, weight[:, width:], self.readout.bias)
            tokens_BNC = functional.linear(tokens_BNC, weight[:, :width]) + shared_BC[:, None]
            tokens_BNC = functional.gelu(tokens_BNC)
        map_BChw = tokens_BNC.transpose(1, 2).unflatten(2, level.grid)
        return self.resample(self.project(map_BChw))


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3, BatchNorm, twice, plus the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Refines a map (B, features, h, w) without changing its shape."""
        out = self.bn1(self.conv1(functional.relu(map_BChw)))
        return self.bn2(self.conv2(functional.relu(out))) + map_BChw


class Fusion(nn.Module):
    """Adds a refined level to the coarser path, refines the sum and doubles its sides."""

    def __init__(self, features: int, has_skip: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualConvUnit(features) if has_skip else None
        self.path_unit = ResidualConvUnit(features)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, path_BChw: Tensor, skip_BChw: Tensor | None = None) -> Tensor:
        """Fuses (B, features, h, w) of the coarser path and this level: (B, features, 2h, 2w)."""
        return upsample_x2(self.fuse(path_BChw, skip_BChw))

    def fuse(self, path_BChw: Tensor, skip_BChw: Tensor | None = None) -> Tensor:
        """The stage without its upsampling: (B, features, h, w)."""
        if self.skip_unit is not None and skip_BChw is not None:
            path_BChw = path_BChw + self.skip_unit(skip_BChw)
        # Published order: upsample, then the 1x1 convolution. They commute (bilinear weights sum
        # to 1), and this way round the convolution costs a quarter.
        return self.out(self.path_unit(path_BChw))


class Decoder(nn.Module):
    """Four levels at strides 4 to 32 -> one map of features at stride 4, and the head.

    As published the finest stage upsamples to stride 2 before its 1x1 convolution and the head's.
    All three commute: the convolutions belong at stride 4, at a quarter of the cost, and the
    upsampling last.

    Args:
        widths: channels of the four levels, finest first.
        features: channels of the fusion stages.
        embed_dim: channels of the embedding (the width of the text vectors).
    """

    def __init__(self, widths: tuple[int, ...], features: int, embed_dim: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(
            nn.Conv2d(width, features, 3, padding=1, bias=False) for width in widths
        )
        self.fusion = nn.ModuleList(Fusion(features, has_skip=level < 3) for level in range(4))
        self.head = nn.Conv2d(features, embed_dim, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Fuses the levels from coarse to fine. The head is left to the caller.

        Args:
            levels: four maps (B, width, h, w), finest first, each twice the size of the next; the
                result has h and w of the finest.
        """
        adapted = [conv(level) for conv, level in zip(self.adapt, levels, strict=True)]
        path = self.fusion[3](adapted[3])
        path = self.fusion[2](path, adapted[2])
        path = self.fusion[1](path, adapted[1])
        return cast(Fusion, self.fusion[0]).fuse(path, adapted[0])


def reassemble_widths(width: int) -> tuple[int, ...]:
    """The published channels of the four reassembled maps for a ViT of this width."""
    if width >= 1024:
        return (width // 4, width // 2, width, width)
    return tuple(max(1, width // divisor) for divisor in (8, 4, 2, 1))
