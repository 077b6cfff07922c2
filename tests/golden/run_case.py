"""Runs one case of the golden comparison: rule-filled weights, through our import, to logits.

    python tests/golden/run_case.py --backbone vitb32 --regularizer bottleneck --depth 2 \
        --activation lrelu --inputs inputs.npz --out out.npz

Writes a Lightning file with every entry of the published network, filled by `fill_rule` under its
published name, reads it as a published checkpoint, and scores `x96` and `x128` of the inputs
against their `text` rows: `96.logits` (N, K, 96, 96) and `128.logits_stride2`, every second row
and column. With `--zero-shot` every image has two labels of its own: at 96, x96 with rows (0, 1)
and x96 mirrored with rows (0, 2); at 128, rows (0, 3).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.config import BackboneConfig, ModelConfig, RegularizerConfig
from model.head.dpt import Fusion, upsample_x2
from model.lseg import LSeg
from model.official import PREFIX, import_official, official_state
from tests.golden.fill_rule import fill

BACKBONES = {
    "vitb32": "vit_base_patch32_384",
    "vitl16": "vit_large_patch16_384",
    "resnet101": "resnet101.tv_in1k",
}
ARCH_OPTIONS = {"none": 0, "bottleneck": 1, "depthwise": 2}


def published_shapes(backbone: str, has_block: bool, embed_dim: int = 512) -> dict[str, list[int]]:
    """The names (without `net.`) and shapes of a published network, CLIP apart."""
    block = RegularizerConfig(kind="depthwise", depth=1) if has_block else RegularizerConfig()
    config = ModelConfig(
        backbone=BackboneConfig(name=BACKBONES[backbone], pretrained=False), regularizer=block
    )
    with torch.device("meta"):
        state = official_state(LSeg(config, embed_dim))
    return {name.removeprefix(PREFIX): list(tensor.shape) for name, tensor in state.items()}


def write_published(
    path: Path,
    backbone: str,
    regularizer: str,
    depth: int,
    activation: str,
    zero_shot: bool = False,
) -> None:
    """Writes a checkpoint as the published code would, with rule-filled weights.

    The zero-shot networks take a regulariser's settings and never build the block.
    """
    shapes = published_shapes(backbone, regularizer != "none" and not zero_shot)
    torch.save(
        {
            "state_dict": {
                f"{PREFIX}{name}": torch.from_numpy(fill(name, shape))
                for name, shape in shapes.items()
            },
            "hyper_parameters": argparse.Namespace(
                arch_option=ARCH_OPTIONS[regularizer],
                block_depth=depth,
                activation=activation,
            ),
        },
        path,
    )


def published_lseg(
    backbone: str, regularizer: str, depth: int, activation: str, zero_shot: bool = False
) -> LSeg:
    """The network of a case, imported from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.ckpt"
        write_published(path, backbone, regularizer, depth, activation, zero_shot)
        return import_official(path).lseg


@torch.inference_mode()
def score(lseg: LSeg, image: Tensor, text: Tensor) -> Tensor:
    """Full-resolution logits (N, K, H, W)."""
    return functional.interpolate(
        lseg(image, text), tuple(image.shape[2:]), mode="bilinear", align_corners=True
    )


def intermediates(lseg: LSeg, image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """What the golden files hold of the network's inside, by their names."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: found.update({name: output})

    # The finest map is made at half the published resolution; upsampling and the head come later.
    modules: dict[str, nn.Module] = {
        "path1": cast(Fusion, lseg.decoder.fusion[0]).out,
    }
    for level in range(4):
        if len(lseg.reassemble):
            modules[f"layer{level + 1}"] = lseg.reassemble[level]
        if level:
            modules[f"path{level + 1}"] = lseg.decoder.fusion[level]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.inference_mode():
        found["half_res_logits"] = lseg(image, text)
        found["logits_sample"] = score(lseg, image, text)
    for handle in handles:
        handle.remove()
    found["path1"] = upsample_x2(found["path1"])
    with torch.inference_mode():
        found["embedding"] = lseg.decoder.head(found["path1"])
    return found


def main(argv: list[str] | None = None) -> None:
    """Runs a case from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", choices=[*BACKBONES], required=True)
    parser.add_argument("--regularizer", choices=[*ARCH_OPTIONS], default="none")
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--activation", choices=["relu", "lrelu", "tanh"], default="lrelu")
    parser.add_argument("--zero-shot", action="store_true")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    inputs = {key: torch.from_numpy(value) for key, value in np.load(args.inputs).items()}
    lseg = published_lseg(
        args.backbone, args.regularizer, args.depth, args.activation, args.zero_shot
    )
    x96, x128, text = inputs["x96"], inputs["x128"], inputs["text"]
    if args.zero_shot:
        logits_96 = score(lseg, torch.cat([x96, x96.flip(3)]), text[torch.tensor([[0, 1], [0, 2]])])
        logits_128 = score(lseg, x128, text[torch.tensor([[0, 3]])])
    else:
        logits_96, logits_128 = score(lseg, x96, text), score(lseg, x128, text)
    np.savez(
        args.out,
        **{
            "96.logits": logits_96.numpy(),
            "128.logits_stride2": logits_128[:, :, ::2, ::2].numpy(),
        },
    )


if __name__ == "__main__":
    main()
