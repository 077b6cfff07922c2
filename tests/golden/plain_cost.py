"""Cost aggregation written out plainly, to compare the head with where no golden numbers exist.

Straight from the description of CAT-Seg (Cho et al. 2024): guidance is concatenated in every class,
padding is padded, windows are cut by loops. Slow, for the grid of 24x24 alone; its weights are a
state dict of the published names.

Shapes: B batch, K classes, P templates, C embedding, D hidden channels, N positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from model.head.aggregator import ImageMaps

GRID, WINDOW, HEADS, LEFT_OUT = 24, 12, 4, -100.0

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A layer of the state dict."""
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Layer normalisation."""
    return functional.layer_norm(
        x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5
    )


def conv(state: State, name: str, x: Tensor, padding: int = 1) -> Tensor:
    """A convolution, with a bias where the state dict has one."""
    bias = state.get(f"{name}.bias")
    return functional.conv2d(x, state[f"{name}.weight"], bias, padding=padding)


def window_block(state: State, name: str, x_ND: Tensor, guidance_ND: Tensor, shift: int) -> Tensor:
    """Attention of one class's positions to those of their window, after a shift, and the MLP."""
    rows = (torch.arange(GRID).repeat_interleave(GRID) - shift) % GRID
    columns = (torch.arange(GRID).repeat(GRID) - shift) % GRID
    window = rows // WINDOW * (GRID // WINDOW) + columns // WINDOW
    within = rows % WINDOW * WINDOW + columns % WINDOW
    bias = torch.zeros(len(x_ND), len(x_ND)).masked_fill(window[:, None] != window, -torch.inf)
    if shift:  # The mask is an entry of the state dict, whatever numbers it holds.
        mask_WNN = state[f"{name}.attn_mask"]
        bias = bias + mask_WNN[window[:, None], within[:, None], within]
    normed = norm(state, f"{name}.norm1", x_ND)
    seen = torch.cat([normed, guidance_ND], 1)
    query = linear(state, f"{name}.attn.q", seen).unflatten(1, (HEADS, -1))
    key = linear(state, f"{name}.attn.k", seen).unflatten(1, (HEADS, -1))
    value = linear(state, f"{name}.attn.v", normed).unflatten(1, (HEADS, -1))
    scores = torch.einsum("nhd,mhd->hnm", query, key) / query.shape[-1] ** 0.5
    weights = (scores + bias).softmax(-1)
    mixed = torch.einsum("hnm,mhd->nhd", weights, value).flatten(1)
    x_ND = x_ND + linear(state, f"{name}.attn.proj", mixed)
    inner = functional.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x_ND)))
    return x_ND + linear(state, f"{name}.mlp.fc2", inner)


def class_block(
    state: State, name: str, x_KDhw: Tensor, guidance_KD: Tensor, pad: int, pool: int
) -> Tensor:
    """Linear attention over the classes, filled up to `pad`, at each pooled position."""
    num_classes = len(x_KDhw)
    pooled = functional.avg_pool2d(x_KDhw, pool)
    side = pooled.shape[2:]
    x_NKD = pooled.flatten(2).permute(2, 0, 1)
    if num_classes < pad:
        extra = state[f"{name}.padding_tokens"].expand(len(x_NKD), pad - num_classes, -1)
        x_NKD = torch.cat([x_NKD, extra], 1)
        more = state[f"{name}.padding_guidance"][0].expand(pad - num_classes, -1)
        guidance_KD = torch.cat([guidance_KD, more])
    normed = norm(state, f"{name}.norm1", x_NKD)
    seen = torch.cat([normed, guidance_KD.expand(len(normed), -1, -1)], 2)
    query, key = (
        functional.elu(linear(state, f"{name}.attention.{each}", seen).unflatten(2, (HEADS, -1)))
        + 1
        for each in "qk"
    )
    value = linear(state, f"{name}.attention.v", normed).unflatten(2, (HEADS, -1))
    similar = torch.einsum("nkhd,nmhd->nhkm", query, key)
    weights = similar / (similar.sum(-1, keepdim=True) + 1e-6)
    x_NKD = x_NKD + torch.einsum("nhkm,nmhd->nkhd", weights, value).flatten(2)
    inner = functional.relu(linear(state, f"{name}.MLP.0", norm(state, f"{name}.norm2", x_NKD)))
    x_NKD = x_NKD + linear(state, f"{name}.MLP.2", inner)
    refined = x_NKD.permute(1, 2, 0).unflatten(2, side)[:num_classes]
    size = (GRID, GRID)
    return x_KDhw + functional.interpolate(refined, size, mode="bilinear", align_corners=True)


def up(state: State, name: str, x_KDhw: Tensor, guidance_GHW: Tensor) -> Tensor:
    """One stage of the decoder."""
    weight, bias = state[f"{name}.up.weight"], state[f"{name}.up.bias"]
    large = functional.conv_transpose2d(x_KDhw, weight, bias, stride=2)
    x = torch.cat([large, guidance_GHW.expand(len(large), -1, -1, -1)], 1)
    for number in (0, 3):
        x = conv(state, f"{name}.conv.double_conv.{number}", x)
        normalised = f"{name}.conv.double_conv.{number + 1}"
        groups = x.shape[1] // 16
        x = functional.group_norm(
            x, groups, state[f"{normalised}.weight"], state[f"{normalised}.bias"], 1e-5
        ).relu()
    return x


def one_image(
    state: State, dense_Chw: Tensor, guidance: list[Tensor], text_KPC: Tensor, pad: int, pool: int
) -> Tensor:
    """The logits of one image: (K, 96, 96)."""
    dense, text = functional.normalize(dense_Chw, dim=0), functional.normalize(text_KPC, dim=-1)
    cosines_KPhw = torch.einsum("chw,kpc->kphw", dense, text)
    if 0 < pad < len(text):
        best = cosines_KPhw.flatten(1).amax(1).topk(pad).indices
        some = one_image(state, dense_Chw, guidance, text[best], pad, pool)
        logits = torch.full((len(text), *some.shape[1:]), LEFT_OUT)
        logits[best] = some
        return logits
    x_KDhw = conv(state, "conv1", cosines_KPhw, padding=3)
    appearance_Dhw = conv(state, "guidance_projection.0", dense_Chw[None]).relu()[0]
    mean = functional.normalize(text_KPC.mean(1), dim=-1)
    text_guidance = linear(state, "text_guidance_projection.0", mean).relu()
    for layer in ("layers.0", "layers.1"):
        name = f"{layer}.swin_block"
        guidance_ND = norm(state, f"{name}.guidance_norm", appearance_Dhw.flatten(1).T)
        maps = []
        for x_Dhw in x_KDhw:
            x_ND = window_block(state, f"{name}.block_1", x_Dhw.flatten(1).T, guidance_ND, 0)
            x_ND = window_block(state, f"{name}.block_2", x_ND, guidance_ND, WINDOW // 2)
            maps.append(x_ND.T.unflatten(1, (GRID, GRID)))
        x_KDhw = class_block(
            state, f"{layer}.attention", torch.stack(maps), text_guidance, pad, pool
        )
    for number, map_GHW in enumerate(guidance):
        projected = conv(state, f"decoder_guidance_projection.{number}.0", map_GHW[None]).relu()
        x_KDhw = up(state, f"decoder{number + 1}", x_KDhw, projected[0])
    return conv(state, "head", x_KDhw)[:, 0]


@torch.inference_mode()
def plain_logits(
    state: State, image: ImageMaps, text_KPC: Tensor, pad: int = 0, pool: int = 1
) -> Tensor:
    """The logits of images: (B, K, 96, 96), each computed alone."""
    found = []
    for number, dense_Chw in enumerate(image.dense_BChw):
        guidance = [map_BGhw[number] for map_BGhw in image.guidance_BGhw]
        found.append(one_image(state, dense_Chw, guidance, text_KPC, pad, pool))
    return torch.stack(found)
