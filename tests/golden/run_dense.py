"""Runs the dense features of a small CLIP, for comparison with other implementations.

    python tests/golden/run_dense.py --size 96 --batch 2 --out y.npz

The image tower has 3 blocks of width 64 with 4 heads, patches of 16 pixels, was trained at 64x64,
and gives vectors of length 32; QuickGELU. Every entry is filled by `fill_rule` under OpenAI's
name, with the weights of query, key and value apart. The image is `uniform("input/dense/{size}")`;
positions are resized bicubically. Writes `tokens`, (batch, 1 + n, 32) float32, class token first.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.backbone.aligned import AlignedVit
from model.backbone.build import build_aligned
from model.config import AlignedConfig, BackboneConfig
from tests.golden.fill_rule import fill, uniform

WIDTH, DEPTH, HEADS, PATCH_PX, TRAINED_PX, EMBED = 64, 3, 4, 16, 64, 32

SMALL = BackboneConfig(
    name="vit_base_patch16_clip_quickgelu_224",
    pretrained=False,
    kwargs={
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "patch_size": PATCH_PX,
        "img_size": TRAINED_PX,
        "num_classes": EMBED,
    },
)


def published_state() -> dict[str, Tensor]:
    """The rule-filled tower under timm's names."""

    def given(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(fill(name, shape))

    state = {
        "cls_token": given("class_embedding", WIDTH)[None, None],
        "pos_embed": given("positional_embedding", 1 + (TRAINED_PX // PATCH_PX) ** 2, WIDTH)[None],
        "patch_embed.proj.weight": given("conv1.weight", WIDTH, 3, PATCH_PX, PATCH_PX),
        "head.weight": given("proj", WIDTH, EMBED).T,
        "head.bias": torch.zeros(EMBED),
    }
    for ours, theirs in (("norm_pre", "ln_pre"), ("norm", "ln_post")):
        for leaf in ("weight", "bias"):
            state[f"{ours}.{leaf}"] = given(f"{theirs}.{leaf}", WIDTH)
    shapes = {
        "attn.out_proj": (WIDTH, WIDTH),
        "mlp.c_fc": (4 * WIDTH, WIDTH),
        "mlp.c_proj": (WIDTH, 4 * WIDTH),
        "ln_1": (WIDTH,),
        "ln_2": (WIDTH,),
    }
    names = ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
    for block in range(DEPTH):
        theirs, ours = f"transformer.resblocks.{block}", f"blocks.{block}"
        parts = [given(f"{theirs}.attn.{each}_proj_weight", WIDTH, WIDTH) for each in "qkv"]
        state[f"{ours}.attn.qkv.weight"] = torch.cat(parts)
        state[f"{ours}.attn.qkv.bias"] = given(f"{theirs}.attn.in_proj_bias", 3 * WIDTH)
        for name, (part, shape) in zip(names, shapes.items(), strict=True):
            state[f"{ours}.{name}.weight"] = given(f"{theirs}.{part}.weight", *shape)
            state[f"{ours}.{name}.bias"] = given(f"{theirs}.{part}.bias", shape[0])
    return state


def small_clip(aligned: AlignedConfig) -> AlignedVit:
    """The rule-filled tower."""
    tower = build_aligned(SMALL, aligned)
    assert isinstance(tower, AlignedVit)
    # The variant `value` is built without the last block's MLP.
    kept = tower.vit.state_dict().keys()
    tower.vit.load_state_dict({n: t for n, t in published_state().items() if n in kept})
    return tower.eval()


def image_of(size: int, batch: int) -> Tensor:
    """The image of the golden cases: (batch, 3, size, size) in (-1, 1)."""
    numbers = uniform(f"input/dense/{size}", batch * 3 * size * size).astype(np.float32)
    return torch.from_numpy(numbers.reshape(batch, 3, size, size))


def main(argv: list[str] | None = None) -> None:
    """Runs a case from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, required=True, help="side of the image in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.size < PATCH_PX or args.size % PATCH_PX or args.batch < 1:
        parser.error(f"--size must be a multiple of {PATCH_PX}, --batch at least 1")
    tower = small_clip(AlignedConfig(variant="cat-seg", positions="bicubic"))
    with torch.inference_mode():
        tokens = tower(image_of(args.size, args.batch)).tokens_BNE
    np.savez(args.out, tokens=tokens.numpy())


if __name__ == "__main__":
    main()
