"""timm backbones that give four levels of features.

A ViT gives the tokens after four of its blocks (before the final norm, which is not built), as
the dense prediction transformer of Ranftl et al. 2021 taps them; a CNN gives its feature maps at
strides 4, 8, 16 and 32. Position embeddings that a ViT learned are resized bilinearly to the
patch grid of each input, inside the graph, so that they train at any input size.

Shapes: B batch, C channels, H W pixels, h w patch grid, N = h * w patch tokens, P prefix tokens.
"""

from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.backbone.timm_models import create, normalisation, probe
from model.config import BackboneConfig
from model.errors import ModelError
from model.settings_file import shown

LEVEL_STRIDES = (4, 8, 16, 32)
"""Pixels between neighbours in the four levels, finest first."""


class TokenLevel(NamedTuple):
    """The tokens after one transformer block."""

    tokens_BNC: Tensor
    """(B, h * w, C), row by row."""
    class_BC: Tensor | None
    """(B, C), or None where the ViT has no class token."""
    grid: tuple[int, int]
    """(h, w)."""


class TokenBackbone(nn.Module):
    """A ViT tapped after four of its blocks.

    Attributes:
        patch_px: side of a patch.
        width: channels of a token.
        mean: (3,) of the input normalisation, in units of 0..1.
        std: (3,), the same.
    """

    def __init__(self, config: BackboneConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        kwargs: dict[str, Any] = {"num_classes": 0, **config.kwargs}
        if not isinstance(probe(config.name), VisionTransformer):
            kwargs.setdefault("dynamic_img_size", True)
        self.vit = cast(Any, create(config, kwargs))
        self.hooks = hooks_of(config, len(self.vit.blocks))
        # Whatever comes after the last tapped block is computed for nothing, and parameters
        # without a gradient stop DDP.
        self.vit.blocks = self.vit.blocks[: self.hooks[-1] + 1]
        for unused in ("norm", "fc_norm", "attn_pool", "head"):
            if isinstance(getattr(self.vit, unused, None), nn.Module):
                setattr(self.vit, unused, nn.Identity())
        patch = self.vit.patch_embed.patch_size
        if patch[0] != patch[1]:
            raise ModelError(
                f"backbone.name={config.name}: has patches of {patch[0]}x{patch[1]} pixels, only "
                "square ones are supported: choose another ViT"
            )
        self.patch_px: int = patch[0]
        self.width: int = self.vit.embed_dim
        self.num_prefix: int = self.vit.num_prefix_tokens
        self.has_class_token = getattr(self.vit, "cls_token", None) is not None
        self.mean, self.std = normalisation(self.vit)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, image_BCHW: Tensor) -> list[TokenLevel]:
        """Gives four levels, shallowest first, all on the same grid.

        Args:
            image_BCHW: (B, 3, H, W) normalised; H and W multiples of the patch.
        """
        grid = (image_BCHW.shape[2] // self.patch_px, image_BCHW.shape[3] // self.patch_px)
        if isinstance(self.vit, VisionTransformer):
            states = self._run_plain_vit(image_BCHW, grid)
        else:
            # Other families (rotary positions of EVA and DINOv3) bring their own forward.
            levels = self.vit.forward_intermediates(
                image_BCHW,
                indices=list(self.hooks),
                return_prefix_tokens=True,
                norm=False,
                output_fmt="NLC",
                intermediates_only=True,
            )
            states = [torch.cat([prefix, tokens], dim=1) for tokens, prefix in levels]
        return [
            TokenLevel(
                state[:, self.num_prefix :], state[:, 0] if self.has_class_token else None, grid
            )
            for state in states
        ]

    def _run_plain_vit(self, image_BCHW: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        vit = self.vit
        tokens = vit.patch_embed.proj(image_BCHW).flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = vit.patch_embed.norm(tokens)
        prefix = [
            token.expand(tokens.shape[0], -1, -1)
            for token in (vit.cls_token, vit.reg_token)
            if token is not None
        ]
        if vit.pos_embed is not None and vit.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self._positions(0, grid)], dim=1)
        elif vit.pos_embed is not None:
            tokens = torch.cat([*prefix, tokens], dim=1) + self._positions(self.num_prefix, grid)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1)
        tokens = vit.norm_pre(vit.pos_drop(tokens))
        states = []
        for index, block in enumerate(vit.blocks):
            if self.activation_checkpointing and self.training:
                tokens = cast(Tensor, checkpoint(block, tokens, use_reentrant=False))
            else:
                tokens = block(tokens)
            states += [tokens] * self.hooks.count(index)
        return states

    def _positions(self, num_prefix: int, grid: tuple[int, int]) -> Tensor:
        """The learned position embedding for this grid: (1, P + h * w, C)."""
        learned = self.vit.pos_embed
        patches = learned[:, num_prefix:]
        side = round(patches.shape[1] ** 0.5)
        own = self.vit.patch_embed.grid_size
        own = own if own and own[0] * own[1] == patches.shape[1] else (side, side)
        if own == grid:
            return learned
        resized = functional.interpolate(
            patches.transpose(1, 2).unflatten(2, own), grid, mode="bilinear", align_corners=False
        )
        return torch.cat([learned[:, :num_prefix], resized.flatten(2).transpose(1, 2)], dim=1)


class PyramidBackbone(nn.Module):
    """A CNN with feature maps at strides 4, 8, 16 and 32.

    Attributes:
        widths: channels of the four maps, finest first.
        mean: (3,) of the input normalisation, in units of 0..1.
        std: (3,), the same.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.hooks is not None:
            raise ModelError(
                f"backbone.hooks={shown(config.hooks)}: {config.name} is a CNN, which has no "
                "blocks to tap: leave it out"
            )
        self.net = cast(Any, create(config, {"features_only": True, **config.kwargs}))
        strides = self.net.feature_info.reduction()
        if not set(LEVEL_STRIDES) <= set(strides):
            raise ModelError(
                f"backbone.name={config.name}: its feature maps have strides {strides}, the "
                f"decoder needs {list(LEVEL_STRIDES)}: choose a ViT, a ResNet or a ConvNeXt"
            )
        self.levels = tuple(strides.index(stride) for stride in LEVEL_STRIDES)
        self.widths = tuple(self.net.feature_info.channels()[level] for level in self.levels)
        # Some transformers in the guise of a CNN (Swin) give (B, h, w, C).
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self.mean, self.std = normalisation(self.net)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Gives four maps (B, C, H / stride, W / stride), finest first.

        Args:
            image_BCHW: (B, 3, H, W) normalised; H and W multiples of 32.
        """
        maps = self.net(image_BCHW)
        if self.channels_last:
            maps = [map_BhwC.permute(0, 3, 1, 2) for map_BhwC in maps]
        return [maps[level] for level in self.levels]


def quarter_ends(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of a ViT's depth, which is what the publication taps."""
    return tuple(max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4))


def hooks_of(config: BackboneConfig, depth: int) -> tuple[int, ...]:
    """The four blocks that a configuration taps.

    Raises:
        ModelError: it names a block that the ViT does not have.
    """
    if config.hooks is None:
        return quarter_ends(depth)
    if config.hooks[-1] >= depth:
        raise ModelError(
            f"backbone.hooks={list(config.hooks)}: {config.name} has {depth} blocks, numbered "
            f"from 0: the last hook may be {depth - 1}"
        )
    return config.hooks
