"""Dense image features in the space of a text tower: CLIP, SigLIP, EVA, PE and CLIP ConvNeXts.

What these models were trained on is one vector of the whole image. Their last block, norm and
projection give every position a vector too, which is comparable with the vectors of texts; but
the last attention mixes positions that the training never kept apart. The variants differ in what
they put in its place:

    tokens      the block as it is (dino.txt, PE)
    value       the value and output projections alone, no residual, no MLP (MaskCLIP)
    value+mlp   the same with the token's residual, and the MLP (TIPSv2)
    cat-seg     the same with the class token's residual in every position, and the MLP (CAT-Seg)
    csa         softmax(qq) + softmax(kk) in place of softmax(qk) (SCLIP, DeCLIP)

Pooled models map each position as they would map an image of that position alone.

Shapes: B batch, C channels, E embedding, H W pixels, h w grid, P prefix tokens, N = P + h * w.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.backbone.levels import TokenLevel
from model.backbone.timm_models import create, normalisation
from model.config import AlignedConfig, BackboneConfig
from model.errors import ModelError

CONVNEXT_STRIDE = 32


class AlignedFeatures(NamedTuple):
    """What an image gives."""

    tokens_BNE: Tensor
    """(B, P + h * w, E): prefix tokens first, then the grid row by row; of any length."""
    num_prefix: int
    grid: tuple[int, int]
    levels: list[TokenLevel]
    """After each of the blocks that were asked for."""

    @property
    def dense_BEhw(self) -> Tensor:
        """The features of the grid."""
        return self.tokens_BNE[:, self.num_prefix :].transpose(1, 2).unflatten(2, self.grid)

    @property
    def taps(self) -> list[Tensor]:
        """(B, C, h, w) of each level."""
        return [level.tokens_BNC.transpose(1, 2).unflatten(2, level.grid) for level in self.levels]


Taps = Callable[[int], tuple[int, ...]]
"""From a ViT's number of blocks to those whose tokens are given too, counted from 0, rising."""


def no_taps(depth: int) -> tuple[int, ...]:
    """The features alone."""
    return ()


class AlignedVit(nn.Module):
    """A ViT with its norm, pooling head and projection.

    Attributes:
        patch_px: side of a patch.
        width: channels of a token.
        embed_dim: E.
        taps: blocks whose tokens are given too; those of the last one are its own, whatever the
            variant puts in its place for the features.
        mean: (3,) of the input normalisation, in units of 0..1.
        std: (3,), the same.
    """

    def __init__(
        self,
        config: BackboneConfig,
        aligned: AlignedConfig,
        taps: Taps = no_taps,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        kwargs = {"dynamic_img_size": True, **config.kwargs}
        self.vit = cast(Any, create(config, kwargs))
        self.aligned = aligned
        self.patch_px: int = self.vit.patch_embed.patch_size[0]
        self.width: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.taps = taps(self.depth)
        self.num_prefix: int = self.vit.num_prefix_tokens
        self.has_class_token = getattr(self.vit, "cls_token", None) is not None
        self.mean, self.std = normalisation(self.vit)
        head = self.vit.head
        self.embed_dim: int = head.out_features if isinstance(head, nn.Linear) else self.width
        if aligned.variant == "value" and self.depth - 1 not in self.taps:
            # Never called: parameters without a gradient stop DDP.
            for name in ("norm2", "mlp"):
                setattr(self.vit.blocks[-1], name, nn.Identity())
        if aligned.variant == "cat-seg" and not self.has_class_token:
            raise ModelError(
                f"model.head.aligned.variant=cat-seg: {config.name} has no class token, whose "
                "residual this variant adds: choose value+mlp"
            )

    def forward(self, image_BCHW: Tensor) -> AlignedFeatures:
        """Embeds images.

        Args:
            image_BCHW: (B, 3, H, W) normalised; H and W multiples of the patch.
        """
        vit = self.vit
        grid = (image_BCHW.shape[2] // self.patch_px, image_BCHW.shape[3] // self.patch_px)
        tokens, rope = self._embedded(image_BCHW, grid)
        tokens = vit.norm_pre(tokens)
        states = []
        for index, block in enumerate(vit.blocks[:-1]):
            if self.activation_checkpointing and self.training:
                tokens = cast(
                    Tensor, checkpoint(partial(block, **rope), tokens, use_reentrant=False)
                )
            else:
                tokens = block(tokens, **rope)
            states += [tokens] * self.taps.count(index)
        last = self._last(vit.blocks[-1], tokens, rope)
        if self.depth - 1 in self.taps:
            own = last if self.aligned.variant == "tokens" else vit.blocks[-1](tokens, **rope)
            states += [own] * self.taps.count(self.depth - 1)
        levels = [
            TokenLevel(
                state[:, self.num_prefix :], state[:, 0] if self.has_class_token else None, grid
            )
            for state in states
        ]
        return AlignedFeatures(self._project(last), self.num_prefix, grid, levels)

    def _embedded(
        self, image_BCHW: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Patches with prefix and positions, and what each block gets beside its tokens."""
        vit = self.vit
        tokens = vit.patch_embed.proj(image_BCHW).flatten(2).transpose(1, 2)
        tokens = vit.patch_embed.norm(tokens)
        prefix = [
            token.expand(tokens.shape[0], -1, -1)
            for token in (vit.cls_token, vit.reg_token)
            if token is not None
        ]
        learned = vit.pos_embed
        if learned is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif vit.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self._positions(learned, 0, grid)], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1)
            tokens = tokens + self._positions(learned, self.num_prefix, grid)
        rope = getattr(vit, "rope", None)
        return tokens, {} if rope is None else {"rope": rope.get_embed(shape=grid)}

    def _positions(self, learned_1NC: Tensor, num_prefix: int, grid: tuple[int, int]) -> Tensor:
        patches = learned_1NC[:, num_prefix:]
        side = round(patches.shape[1] ** 0.5)
        if (side, side) == grid:
            return learned_1NC
        mode, _, antialias = self.aligned.positions.partition("-")
        resized = functional.interpolate(
            patches.transpose(1, 2).unflatten(2, (side, side)),
            grid,
            mode=mode,
            align_corners=False,
            antialias=bool(antialias),
        )
        return torch.cat([learned_1NC[:, :num_prefix], resized.flatten(2).transpose(1, 2)], dim=1)

    def _last(self, block: Any, tokens_BNC: Tensor, rope: dict[str, Tensor]) -> Tensor:
        """The last block, by the variant."""
        variant = self.aligned.variant
        if variant == "tokens":
            return block(tokens_BNC, **rope)
        normed = block.norm1(tokens_BNC)
        if variant == "csa":
            mixed = self_similar_attention(block.attn, normed, rope.get("rope"))
        else:
            # A token that sees itself alone gets its own value.
            mixed = block.attn(normed.flatten(0, 1)[:, None]).view_as(normed)
        mixed = _scaled(block, 1, mixed)
        if variant == "value":
            return mixed
        residual = tokens_BNC[:, :1] if variant == "cat-seg" else tokens_BNC
        tokens_BNC = residual + mixed
        return tokens_BNC + _scaled(block, 2, block.mlp(block.norm2(tokens_BNC)))

    def _project(self, tokens_BNC: Tensor) -> Tensor:
        vit = self.vit
        tokens_BNC = vit.norm(tokens_BNC)
        if vit.attn_pool is not None:
            alone = tokens_BNC.flatten(0, 1)[:, None]
            tokens_BNC = vit.attn_pool(alone).reshape(*tokens_BNC.shape[:2], -1)
        return vit.head(vit.fc_norm(tokens_BNC))


class AlignedConvNext(nn.Module):
    """A CLIP ConvNeXt with its norm and projection, at every position of the last map.

    The attributes are those of `AlignedVit`.
    """

    num_prefix = 0

    def __init__(self, config: BackboneConfig, aligned: AlignedConfig) -> None:
        super().__init__()
        if aligned.variant != "tokens":
            raise ModelError(
                f"model.head.aligned.variant={aligned.variant}: {config.name} has no attention "
                "that it could replace: set it to tokens"
            )
        self.net = cast(Any, create(config, dict(config.kwargs)))
        self.patch_px = CONVNEXT_STRIDE
        self.width: int = self.net.num_features
        self.embed_dim: int = self.net.num_classes or self.width
        self.mean, self.std = normalisation(self.net)

    def forward(self, image_BCHW: Tensor) -> AlignedFeatures:
        """Embeds images; H and W are multiples of 32."""
        map_BChw = self.net.forward_features(image_BCHW)
        # Pooling over a map of one position is that position.
        alone = map_BChw.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        tokens = self.net.forward_head(alone).unflatten(0, (len(map_BChw), -1))
        return AlignedFeatures(tokens, 0, (map_BChw.shape[2], map_BChw.shape[3]), [])


def _scaled(block: Any, number: int, tokens_BNC: Tensor) -> Tensor:
    """The layer scale behind attention (1) or MLP (2), under timm's two names for it."""
    gamma = getattr(block, f"gamma_{number}", None)
    if gamma is not None:
        return gamma * tokens_BNC
    return getattr(block, f"ls{number}", nn.Identity())(tokens_BNC)


def self_similar_attention(attention: Any, x_BNC: Tensor, rope: Tensor | None) -> Tensor:
    """Attends by the similarity of queries to queries, and of keys to keys, added."""
    query, key, value = (
        each.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for each in _projections(attention, x_BNC)
    )
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rope is not None:
        num_prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
        query, key = (
            torch.cat(
                [
                    each[:, :, :num_prefix],
                    apply_rot_embed_cat(each[:, :, num_prefix:], rope, half=half),
                ],
                dim=2,
            )
            for each in (query, key)
        )
    mixed = functional.scaled_dot_product_attention(query, query, value)
    mixed = mixed + functional.scaled_dot_product_attention(key, key, value)
    return attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))


def _projections(attention: Any, x_BNC: Tensor) -> tuple[Tensor, ...]:
    if attention.qkv is None:
        return attention.q_proj(x_BNC), attention.k_proj(x_BNC), attention.v_proj(x_BNC)
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return functional.linear(x_BNC, attention.qkv.weight, bias).chunk(3, dim=2)
