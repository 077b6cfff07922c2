"""What the cost head costs by the number of labels: operations, kept activations, peak memory.

    python -m tests.benchmarks.cost_head [--labels 20,64,171,194,847] [--run]

The table is of one image of 384x384 (24x24 patches of a ViT-B/16) in float32: multiplications of a
forward pass, and the activations that training keeps for the backward pass. Both are counted on the
meta device, which computes nothing, so that they are those of any machine; bfloat16 halves the
activations. `--run` measures the peak of a process besides: a training step with 64 labels, and the
classes of one picture of 640x640 of 847 labels, by windows, with a whole ViT-B/16.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.config import BackboneConfig, HeadConfig, ModelConfig
from model.head.aggregator import Aggregator, ImageMaps
from model.loss import segmentation_loss
from model.lseg import build_lseg
from model.sliding import SlidingConfig, sliding_label_ids

DIM, GRID = 512, 24
RUNS = ("training", "evaluation")


def counted(num_labels: int, training: bool, padded: int = 256) -> tuple[float, float]:
    """GMAC of a forward pass of the head alone, and MiB that it keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            held.append(tensor)  # So that no other storage takes its number.
        return tensor

    held: list[Tensor] = []
    with torch.device("meta"):
        head = Aggregator(DIM, 1, padded).train(training).requires_grad_(training)
        size = (2 * GRID, 2 * GRID), (4 * GRID, 4 * GRID)
        guidance = torch.randn(1, 256, *size[0]), torch.randn(1, 128, *size[1])
        image = ImageMaps(torch.randn(1, DIM, GRID, GRID), guidance)
        text = torch.randn(1, num_labels, 1, DIM)
        with (
            torch.set_grad_enabled(training),
            FlopCounterMode(display=False) as flops,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            head(image, text)
    return flops.get_total_flops() / 2e9, sum(kept.values()) / 2**20


def run(kind: str) -> dict[str, Any]:
    """Runs one case in this process, with random weights."""
    torch.manual_seed(0)
    name = "vit_base_patch16_clip_quickgelu_224"
    backbone = BackboneConfig(name=name, pretrained=False, kwargs={"num_classes": DIM})
    lseg = build_lseg(ModelConfig(backbone=backbone, head=HeadConfig(kind="cost")), DIM)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "training":
        image, text = torch.randn(1, 3, 384, 384), torch.randn(64, DIM)
        label = torch.randint(64, (1, 384, 384))
        segmentation_loss(lseg.train()(image, text), label, kind="binary")[0].backward()
    else:
        sliding = SlidingConfig(base_px=640, window_px=384, stride_px=256)
        sliding_label_ids(lseg.eval(), torch.randn(1, 3, 640, 640), torch.randn(847, DIM), sliding)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "peak GiB": used.ru_maxrss / 2**20,
        "above the network": (used.ru_maxrss - before) / 2**20,
        "CPU s": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", default="20,64,171,194,847")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--case", choices=RUNS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(run(given.case)))
        return
    print("labels  training GMAC  kept MiB  evaluation GMAC  (256 padded or best, as published)")
    for num_labels in map(int, given.labels.split(",")):
        training, kept = counted(num_labels, True)
        evaluation, _ = counted(num_labels, False)
        print(f"{num_labels:6}  {training:13.1f}  {kept:8.0f}  {evaluation:15.1f}", flush=True)
    for case in RUNS if given.run else ():
        command = [sys.executable, "-m", "tests.benchmarks.cost_head", "--case", case]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        print(case, " ".join(f"{name}: {value:.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
