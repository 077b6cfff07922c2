"""Attention over the positions of a cost map, and over the classes at a position.

The two halves of an aggregation layer of CAT-Seg (Cho et al. 2024, section 3.3): shifted windows
(Liu et al. 2021) over the map of each class, guided by the image's features, and linear attention
(Katharopoulos et al. 2020) over the classes at each position, guided by the labels' vectors. Names
of parameters are the published ones.

The guidance is the same for all classes (or positions). Its part of a query and a key is therefore
computed once and added, where the published code computes it anew in each of them.

Shapes: B batch, K classes, h w cost map, C channels, W windows, N positions of a window.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.head.windows import WINDOW, from_windows, shift_mask, to_windows

NUM_HEADS = 4
MLP_RATIO = 4
RESOLUTION = 24
"""Side of the map that the published networks see, for which their files hold the mask."""
EPSILON = 1e-6

CHUNK_MIB = 256
"""Size of the float32 maps of the classes that go through a part together, without gradients."""


def over_parts(part: Callable[[Tensor], Tensor], whole: Tensor, held: int) -> Tensor:
    """Runs a part that treats alike what lies along dimension 1, in pieces without gradients.

    Args:
        part: from (B, n, ...) to (B, n, ...), for any n.
        whole: (B, N, ...).
        held: numbers that the part holds at once for each of the N.
    """
    if torch.is_grad_enabled():
        return part(whole)
    piece = max(1, int(CHUNK_MIB * 2**20 / (4 * held)))
    if piece >= whole.shape[1]:
        return part(whole)
    return torch.cat([part(some) for some in whole.split(piece, dim=1)], dim=1)


def guided(linear: nn.Linear, x: Tensor, guidance: Tensor) -> Tensor:
    """Applies a layer to x beside its guidance, which may be broadcast over dimensions of x."""
    width = x.shape[-1]
    weight = linear.weight
    return functional.linear(x, weight[:, :width]) + functional.linear(
        guidance, weight[:, width:], linear.bias
    )


class WindowAttention(nn.Module):
    """Softmax attention within the windows of each class; the values do not see the guidance."""

    def __init__(self, channels: int, guidance: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels + guidance, channels)
        self.k = nn.Linear(channels + guidance, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x_BKWNC: Tensor, guidance_B1WNC: Tensor, mask_WNN: Tensor | None) -> Tensor:
        """Mixes the positions of each window; the mask is added to their scores."""
        query = guided(self.q, x_BKWNC, guidance_B1WNC)
        key = guided(self.k, x_BKWNC, guidance_B1WNC)
        value = self.v(x_BKWNC)
        # (B * K, W, heads, N, C / heads)
        query, key, value = (
            each.flatten(0, 1).unflatten(-1, (NUM_HEADS, -1)).transpose(2, 3)
            for each in (query, key, value)
        )
        mask = None if mask_WNN is None else mask_WNN[:, None].to(query.dtype)
        mixed = _attend(query, key, value, mask)
        return self.proj(mixed.transpose(2, 3).flatten(3).view_as(x_BKWNC))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of (..., N, C); the mask is added to its scores."""
    if not torch.compiler.is_exporting():
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # ONNX has the operator above for one dimension less.
    assert mask is not None  # See `SwinBlock._mask`.
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return (scores + mask).softmax(-1) @ value


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Changes the last dimension's numbers, not its length."""
        return self.fc2(functional.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """One block of attention within windows, and its MLP.

    Args:
        channels: of the cost map.
        guidance: channels of the guidance.
        shift: positions by which the windows are moved.
    """

    attn_mask: Tensor

    def __init__(self, channels: int, guidance: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        if shift:
            # Part of the published state dict.
            self.register_buffer("attn_mask", shift_mask((RESOLUTION, RESOLUTION), shift))
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, guidance)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x_BKhwC: Tensor, guidance_B1hwC: Tensor) -> Tensor:
        """Mixes the positions of every class's map, which may have any size."""
        size = (x_BKhwC.shape[2], x_BKhwC.shape[3])
        normed = to_windows(self.norm1(x_BKhwC), self.shift)
        guidance = to_windows(guidance_B1hwC, self.shift)
        mixed = self.attn(normed, guidance, self._mask(size))
        x_BKhwC = x_BKhwC + from_windows(mixed, size, self.shift)
        return x_BKhwC + self.mlp(self.norm2(x_BKhwC))

    def _mask(self, size: tuple[int, int]) -> Tensor | None:
        if torch.compiler.is_exporting():  # By one rule at every size.
            return shift_mask(size, self.shift).to(self.norm1.weight.device)
        if self.shift and size == (RESOLUTION, RESOLUTION):
            return self.attn_mask
        if not self.shift and size[0] % WINDOW == size[1] % WINDOW == 0:
            return None
        return shift_mask(size, self.shift).to(self.norm1.weight.device)


class SwinPair(nn.Module):
    """Two blocks, the second with shifted windows, guided by the image's features."""

    def __init__(self, channels: int, guidance: int) -> None:
        super().__init__()
        self.block_1 = SwinBlock(channels, guidance, shift=0)
        self.block_2 = SwinBlock(channels, guidance, shift=WINDOW // 2)
        self.guidance_norm = nn.LayerNorm(guidance)

    def forward(self, x_BKhwC: Tensor, guidance_BhwC: Tensor) -> Tensor:
        """Mixes the positions of every class's map."""
        guidance = self.guidance_norm(guidance_BhwC)[:, None]

        def both(maps_BKhwC: Tensor) -> Tensor:
            return self.block_2(self.block_1(maps_BKhwC, guidance), guidance)

        # The MLP's inner numbers are the most that are held, or the scores of the heads.
        numbers = max(2 * MLP_RATIO * x_BKhwC.shape[-1], 3 * NUM_HEADS * WINDOW**2)
        return over_parts(both, x_BKhwC, numbers * x_BKhwC[:, 0, :, :, 0].numel())


class LinearAttention(nn.Module):
    """Attention over the classes at each position, at a cost linear in their number."""

    def __init__(self, channels: int, guidance: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels + guidance, channels)
        self.k = nn.Linear(channels + guidance, channels)
        self.v = nn.Linear(channels, channels)

    def forward(
        self,
        x_BPKC: Tensor,
        guidance_B1KC: Tensor,
        padding: tuple[Tensor, Tensor] | None,
        num_padded: int,
    ) -> Tensor:
        """Mixes the classes.

        Args:
            x_BPKC: P positions.
            guidance_B1KC: the labels' guidance.
            padding: a further class (C,) and its guidance (C,), which is there `num_padded` times;
                being alike, all of them are computed as one.
            num_padded: how many times.
        """
        query = functional.elu(self._heads(guided(self.q, x_BPKC, guidance_B1KC))) + 1
        key = functional.elu(self._heads(guided(self.k, x_BPKC, guidance_B1KC))) + 1
        value = self._heads(self.v(x_BPKC))
        total = x_BPKC.shape[2] + num_padded
        # Divided here and multiplied below, as published: sums of many values keep their digits.
        moment = torch.einsum("bpkhd,bpkhv->bphdv", key, value / total)
        keys = key.sum(2)  # (B, P, heads, d)
        if padding is not None:
            extra, extra_guidance = padding
            extra_key = functional.elu(self._heads(guided(self.k, extra, extra_guidance))) + 1
            extra_value = self._heads(self.v(extra)) * (num_padded / total)
            moment = moment + torch.einsum("hd,hv->hdv", extra_key, extra_value)
            keys = keys + num_padded * extra_key
        share = 1 / (torch.einsum("bpkhd,bphd->bpkh", query, keys) + EPSILON)
        mixed = torch.einsum("bpkhd,bphdv,bpkh->bpkhv", query, moment, share) * total
        return mixed.flatten(3)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (NUM_HEADS, -1))


class ClassBlock(nn.Module):
    """Attention over the classes, on a pooled map, added to the map.

    Args:
        channels: of the cost map.
        guidance: channels of the labels' guidance.
        padded: fewer classes than this are filled up with a learned one; 0 for none.
    """

    padding_tokens: Tensor | None
    padding_guidance: Tensor | None

    def __init__(self, channels: int, guidance: int, padded: int) -> None:
        super().__init__()
        self.padded = padded
        self.attention = LinearAttention(channels, guidance)
        self.MLP = nn.Sequential(
            nn.Linear(channels, MLP_RATIO * channels),
            nn.ReLU(),
            nn.Linear(MLP_RATIO * channels, channels),
        )
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        for name, width in (("padding_tokens", channels), ("padding_guidance", guidance)):
            parameter = nn.Parameter(torch.zeros(1, 1, width)) if padded else None
            self.register_parameter(name, parameter)

    def forward(self, x_BKhwC: Tensor, guidance_BKC: Tensor, pool: int) -> Tensor:
        """Mixes the classes at each position.

        Args:
            x_BKhwC: the maps.
            guidance_BKC: the labels' guidance; one for all images where its B is 1.
            pool: side of the squares of positions that are averaged before.
        """
        size = (x_BKhwC.shape[2], x_BKhwC.shape[3])
        pooled = _average(x_BKhwC, pool)
        height, width = pooled.shape[2:4]
        mixed = self._mix(pooled.flatten(2, 3).transpose(1, 2), guidance_BKC[:, None])
        mixed = mixed.transpose(1, 2).unflatten(2, (height, width))
        return x_BKhwC + _enlarge(mixed, size)

    def _mix(self, x_BPKC: Tensor, guidance_B1KC: Tensor) -> Tensor:
        padding, num_padded = None, torch.sym_max(0, self.padded - x_BPKC.shape[2])
        # Also where none is needed: parameters without a gradient stop DDP.
        if self.padded:
            token = cast(Tensor, self.padding_tokens).flatten()
            padding = (self.norm1(token), cast(Tensor, self.padding_guidance).flatten())

        def mix(some_BPKC: Tensor) -> Tensor:
            normed = self.norm1(some_BPKC)
            mixed = some_BPKC + self.attention(normed, guidance_B1KC, padding, num_padded)
            return mixed + self.MLP(self.norm2(mixed))

        return over_parts(mix, x_BPKC, 2 * MLP_RATIO * x_BPKC[:, 0].numel())


def _average(x_BKhwC: Tensor, pool: int) -> Tensor:
    """Averages squares of positions; what is left of a map beside them is unseen, as published."""
    # The first question is about no size, so that an exported graph is not fixed to one.
    if pool == 1 or (pool := min(pool, *x_BKhwC.shape[2:4])) == 1:
        return x_BKhwC
    maps = x_BKhwC.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(maps, pool).permute(0, 2, 3, 1)
    return pooled.unflatten(0, x_BKhwC.shape[:2])


def _enlarge(x_BKhwC: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x_BKhwC.shape[2:4]) == size:
        return x_BKhwC
    maps = x_BKhwC.flatten(0, 1).permute(0, 3, 1, 2)
    large = functional.interpolate(maps, size, mode="bilinear", align_corners=True)
    return large.permute(0, 2, 3, 1).unflatten(0, x_BKhwC.shape[:2])
