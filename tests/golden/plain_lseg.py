"""The published network once more, written down naively, to check ours where no numbers are kept.

Reads a state dict under the published names directly, in the published order of operations, with
nothing shared with model/ and nothing made fast.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]


def logits(
    state: State,
    image: Tensor,
    text: Tensor,
    *,
    heads: int = 0,
    regularizer: str = "none",
    depth: int = 0,
    activation: str = "lrelu",
) -> Tensor:
    """Full-resolution scores (N, K, H, W) of `image` (N, 3, H, W) against `text` (N, K, C)."""
    levels = _vit_levels(state, image, heads) if heads else _resnet_levels(state, image)
    levels = [
        functional.conv2d(level, state[f"scratch.layer{i}_rn.weight"], padding=1)
        for i, level in enumerate(levels, 1)
    ]
    path = None
    for i in (4, 3, 2, 1):
        path = _refine(state, f"scratch.refinenet{i}.", path, levels[i - 1])
    assert path is not None
    pixels = functional.conv2d(path, state["scratch.head1.weight"], state["scratch.head1.bias"])
    pixels = pixels / pixels.norm(dim=1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    scores = torch.stack(
        [torch.einsum("kc,chw->khw", t, p) for t, p in zip(text, pixels, strict=True)]
    )
    scores = scores / 0.07
    if regularizer != "none":
        for step in range(max(1, depth)):
            scores = _block(state, scores, regularizer)
            if step < depth - 1:
                scores = {
                    "relu": functional.relu,
                    "lrelu": functional.leaky_relu,
                    "tanh": torch.tanh,
                }[activation](scores)
    return functional.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=True)


def _block(state: State, scores: Tensor, kind: str) -> Tensor:
    name = "scratch.head_block.depthwise.depthwise."
    planes = [
        functional.conv2d(
            scores[:, k : k + 1], state[f"{name}weight"], state[f"{name}bias"], padding=1
        )
        for k in range(scores.shape[1])
    ]
    out = torch.cat(planes, 1)
    return out + scores.max(1, keepdim=True).values if kind == "bottleneck" else out


def _refine(state: State, name: str, path: Tensor | None, level: Tensor) -> Tensor:
    out = level if path is None else path + _unit(state, f"{name}resConfUnit1.", level)
    out = _unit(state, f"{name}resConfUnit2.", out)
    out = functional.interpolate(out, scale_factor=2, mode="bilinear", align_corners=True)
    return functional.conv2d(out, state[f"{name}out_conv.weight"], state[f"{name}out_conv.bias"])


def _unit(state: State, name: str, x: Tensor) -> Tensor:
    out = x
    for i in (1, 2):
        out = functional.conv2d(out.relu(), state[f"{name}conv{i}.weight"], padding=1)
        out = _batch_norm(state, f"{name}bn{i}.", out)
    return out + x


def _batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    return functional.batch_norm(
        x,
        state[f"{name}running_mean"],
        state[f"{name}running_var"],
        state[f"{name}weight"],
        state[f"{name}bias"],
    )


def _vit_levels(state: State, image: Tensor, heads: int) -> list[Tensor]:
    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}weight"], state[f"{name}bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], state[f"{name}weight"], state[f"{name}bias"], 1e-6
        )

    model = "pretrained.model."
    weight = state[f"{model}patch_embed.proj.weight"]
    patch = weight.shape[-1]
    x = functional.conv2d(image, weight, state[f"{model}patch_embed.proj.bias"], stride=patch)
    n, width, h, w = x.shape
    x = torch.cat([state[f"{model}cls_token"].expand(n, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    positions = state[f"{model}pos_embed"]
    side = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (h, w), mode="bilinear", align_corners=False)
    x = x + torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, h * w, width)], 1)
    depth = len({key.split(".")[3] for key in state if key.startswith(f"{model}blocks.")})
    tapped = []
    for i in range(depth):
        block = f"{model}blocks.{i}."
        qkv = linear(norm(x, f"{block}norm1."), f"{block}attn.qkv.")
        q, k, v = qkv.reshape(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) * (width // heads) ** -0.5).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(n, -1, width)
        x = x + linear(mixed, f"{block}attn.proj.")
        hidden = functional.gelu(linear(norm(x, f"{block}norm2."), f"{block}mlp.fc1."))
        x = x + linear(hidden, f"{block}mlp.fc2.")
        if (i + 1) % (depth // 4) == 0:
            tapped.append(x)
    levels = []
    for i, tokens in enumerate(tapped, 1):
        name = f"pretrained.act_postprocess{i}."
        both = torch.cat([tokens[:, 1:], tokens[:, :1].expand(-1, h * w, -1)], -1)
        x = functional.gelu(linear(both, f"{name}0.project.0."))
        x = x.transpose(1, 2).reshape(n, width, h, w)
        x = functional.conv2d(x, state[f"{name}3.weight"], state[f"{name}3.bias"])
        if f"{name}4.weight" in state:
            resample = {"weight": state[f"{name}4.weight"], "bias": state[f"{name}4.bias"]}
            if i == 4:
                x = functional.conv2d(x, **resample, stride=2, padding=1)
            else:
                x = functional.conv_transpose2d(x, **resample, stride=resample["weight"].shape[-1])
        levels.append(x)
    return levels


def _resnet_levels(state: State, image: Tensor) -> list[Tensor]:
    stem = "pretrained.layer1."
    x = functional.conv2d(image, state[f"{stem}0.weight"], stride=2, padding=3)
    x = functional.max_pool2d(_batch_norm(state, f"{stem}1.", x).relu(), 3, 2, 1)
    levels = []
    for level, count in zip((1, 2, 3, 4), (3, 4, 23, 3), strict=True):
        stage = f"{stem}4." if level == 1 else f"pretrained.layer{level}."
        for i in range(count):
            name = f"{stage}{i}."
            stride = 2 if level > 1 and i == 0 else 1
            out = functional.conv2d(x, state[f"{name}conv1.weight"])
            out = _batch_norm(state, f"{name}bn1.", out).relu()
            out = functional.conv2d(out, state[f"{name}conv2.weight"], stride=stride, padding=1)
            out = _batch_norm(state, f"{name}bn2.", out).relu()
            out = functional.conv2d(out, state[f"{name}conv3.weight"])
            out = _batch_norm(state, f"{name}bn3.", out)
            if i == 0:
                x = functional.conv2d(x, state[f"{name}downsample.0.weight"], stride=stride)
                x = _batch_norm(state, f"{name}downsample.1.", x)
            x = (x + out).relu()
        levels.append(x)
    return levels
