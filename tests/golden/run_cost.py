"""Runs the cost head on rule-filled weights and inputs, for comparison with other implementations.

    python tests/golden/run_cost.py --K 5 --P 1 --pad 0 --pool 1 --dim 512 --batch 2 --out x.npz

Every entry of the state dict is filled by `fill_rule` under its published name. The image features
are `uniform("input/img/{dim}")`, the labels `input/text/{K}x{P}x{dim}`, and the guidance of the
decoder `input/g1` and `input/g2`. Writes `logits`, (batch, K, 96, 96) float32.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.head.aggregator import GUIDANCE_INNER, Aggregator, ImageMaps
from tests.golden.fill_rule import fill, uniform

GRID = 24


def given(name: str, *shape: int) -> Tensor:
    """An input of the golden cases, in (-1, 1)."""
    numbers = uniform(f"input/{name}", int(np.prod(shape))).astype(np.float32)
    return torch.from_numpy(numbers.reshape(shape))


def fill_by_name(module: nn.Module) -> None:
    """Gives every entry of a state dict the numbers that its name stands for."""
    state = module.state_dict()
    module.load_state_dict(
        {name: torch.from_numpy(fill(name, tuple(t.shape))) for name, t in state.items()}
    )


def image_maps(dim: int, batch: int) -> ImageMaps:
    """The inputs that stand for an image."""
    sides = (2 * GRID, 4 * GRID)
    guidance = tuple(
        given(f"g{number}", batch, channels, side, side)
        for number, channels, side in zip((1, 2), GUIDANCE_INNER, sides, strict=True)
    )
    return ImageMaps(given(f"img/{dim}", batch, dim, GRID, GRID), guidance)


@torch.inference_mode()
def cost_logits(k: int, p: int, pad: int, pool: int, dim: int, batch: int) -> Tensor:
    """The logits of one case: (batch, K, 96, 96)."""
    aggregator = Aggregator(dim, p, padded=pad, pool=(pool, pool)).eval()
    fill_by_name(aggregator)
    return aggregator(image_maps(dim, batch), given(f"text/{k}x{p}x{dim}", 1, k, p, dim))


def main(argv: list[str] | None = None) -> None:
    """Runs a case from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--K", type=int, required=True, help="classes")
    parser.add_argument("--P", type=int, default=1, help="templates")
    parser.add_argument("--pad", type=int, default=0, help="classes that are filled up to")
    parser.add_argument(
        "--pool", type=int, default=1, help="pooling of the attention over classes, 0 or 1 for none"
    )
    parser.add_argument("--dim", type=int, default=512, help="length of a vector")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if min(args.K, args.P, args.dim, args.batch) < 1 or min(args.pad, args.pool) < 0:
        parser.error("K, P, dim and batch must be at least 1, pad and pool at least 0")
    logits = cost_logits(args.K, args.P, args.pad, max(1, args.pool), args.dim, args.batch)
    np.savez(args.out, logits=logits.numpy())


if __name__ == "__main__":
    main()
