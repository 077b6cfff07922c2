"""How deep a spatial regulariser may be: a study on scenes of the mini-seven.

    python -m tests.benchmarks.regularizer_depth [--seeds 2] [--steps 200] [--lr 0.001] [--each]

Every run trains a small LSeg from nothing with the published optimiser (SGD, the decoder, and the
block of the `reference` initialisation, at ten times the base rate; leaky ReLU) on the same batches
from the same weights; only the block differs. Of the block's seeds the first that begin with a
negative bias and the first that begin with a positive one are taken, as many of each. The verdict
on a run is about its last 20 steps:

    trained    the loss is below 0.85 ln K, K being the number of labels: chance is ln K
    dead       otherwise, and the block leaves less than 0.01 of the differences between labels
    slow       otherwise

One process a core, one thread each; a row of the table is the median over its runs. `--each` prints
every run besides.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.config import BackboneConfig, ModelConfig, RegularizerConfig, TextConfig
from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from model.regularizer import DEAD_GAIN, Regularizer
from model.stand_in import STAND_IN_DIM, stand_in_semantics, stand_in_vectors
from pipeline.data.taxonomy import IGNORE, label_text
from pipeline.demo.world import WORLDS, rasterise, render_scene, world_classes

CROP_PX = 48
BATCH_SIZE = 4
SCENES = 12
"""Rendered scenes of each dataset."""
BASE_LR = 0.004 / 16 * BATCH_SIZE
"""The published rule."""
TAIL = 20
"""Steps at the end that the verdict is about."""
TRAINED = 0.85
DEPTHS = (1, 2, 4)


@dataclass(frozen=True)
class Run:
    """One training."""

    block: RegularizerConfig
    seed: int
    bias: float
    """That the block begins with."""
    start_gain: float
    end_gain: float
    loss: float
    """Of the last steps, over ln K."""

    @property
    def verdict(self) -> str:
        if self.loss < TRAINED:
            return "trained"
        return "slow" if self.end_gain >= DEAD_GAIN else "dead"

    @property
    def row(self) -> tuple[str, int, str, str]:
        """Kind, depth, initialisation and sign of the first bias."""
        sign = "" if not self.block.depth else "0" if not self.bias else "-+"[self.bias > 0]
        init = self.block.init if self.block.depth else ""
        return self.block.kind, self.block.depth, init, sign


@cache
def scenes() -> tuple[Tensor, Tensor, Tensor]:
    """Crops of rendered scenes of all seven datasets.

    Returns:
        image: (N, CROP_PX, CROP_PX, 3) uint8.
        label: (N, CROP_PX, CROP_PX) uint8, positions in `text`, or IGNORE.
        text: (K, C) float32.
    """
    names = world_classes()
    rows = stand_in_semantics([label_text(name) for name in names])
    vectors = dict(zip(names, rows, strict=True))
    images, labels = [], []
    for dataset, index in itertools.product(WORLDS, range(SCENES)):
        scene = render_scene(dataset, "train", index, vectors, seed=0)
        height, width = scene.image.shape[:2]
        label = np.full((height, width), IGNORE, np.uint8)
        for region in scene.regions:
            name = region.universal_name
            mask = rasterise(region.polygon, width, height)
            label[mask] = IGNORE if name is None else names.index(name)
        tops, lefts = (range(0, side - CROP_PX + 1, CROP_PX) for side in (height, width))
        for top, left in itertools.product(tops, lefts):
            window = slice(top, top + CROP_PX), slice(left, left + CROP_PX)
            images.append(scene.image[window])
            labels.append(label[window])
    label = np.stack(labels)
    present = np.unique(label[label != IGNORE])
    lut = np.full(256, IGNORE, np.uint8)
    lut[present] = np.arange(len(present))
    text = stand_in_vectors([label_text(names[index]) for index in present])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(lut[label]), torch.from_numpy(text)


def reference_block(depth: int, seed: int) -> tuple[RegularizerConfig, Regularizer]:
    """A block as published; the same first weights for every depth and kind."""
    config = RegularizerConfig(kind="depthwise", depth=depth, activation="lrelu", init="reference")
    torch.manual_seed(seed)
    return config, Regularizer(config)


def first_bias(block: Regularizer) -> float:
    """Of a shared kernel."""
    return float(cast(Tensor, cast(nn.Conv2d, block.convs[0]).bias).detach())


def seeds_of_both_signs(count: int) -> list[int]:
    """The first `count` seeds with a negative bias and the first `count` with a positive one."""
    found: dict[bool, list[int]] = {False: [], True: []}
    for seed in itertools.count():
        group = found[first_bias(reference_block(1, seed)[1]) > 0]
        if len(group) < count:
            group.append(seed)
        if all(len(group) == count for group in found.values()):
            return sorted(itertools.chain.from_iterable(found.values()))
    raise AssertionError


def build(block: RegularizerConfig, seed: int) -> LSeg:
    """The network of a run; backbone and decoder depend on the seed alone."""
    backbone = BackboneConfig(
        name="convnext_atto",
        pretrained=False,
        kwargs={"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)},
    )
    config = ModelConfig(
        backbone=backbone, text=TextConfig(encoder="stand-in"), regularizer=block, features=32
    )
    torch.manual_seed(seed)
    lseg = build_lseg(config, STAND_IN_DIM)
    if block.depth and block.init == "reference":
        lseg.regularizer.load_state_dict(reference_block(block.depth, seed)[1].state_dict())
    return lseg.train()


def train(job: tuple[RegularizerConfig, int, int, float], device: str = "cpu") -> Run:
    """Trains one network: (block, seed, steps, base learning rate)."""
    block, seed, steps, lr = job
    torch.set_num_threads(1)
    image, label, text = (tensor.to(device) for tensor in scenes())
    lseg = build(block, seed).to(device)
    bias = first_bias(lseg.regularizer) if block.depth else 0.0
    optimizer = torch.optim.SGD(lseg.parameter_groups(lr), momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 0.9)
    order = torch.Generator().manual_seed(seed)
    probe = lseg.normalize(image[:: len(image) // 8])
    start_gain = lseg.label_spread_gain(probe, text)
    losses = []
    for _ in range(steps):
        drawn = torch.randint(len(image), (BATCH_SIZE,), generator=order)
        loss_sum, count = segmentation_loss(lseg(lseg.normalize(image[drawn]), text), label[drawn])
        loss = loss_sum / count.clamp_min(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    loss = statistics.fmean(losses[-TAIL:]) / math.log(len(text))
    return Run(block, seed, bias, start_gain, lseg.label_spread_gain(probe, text), loss)


def blocks() -> Iterable[RegularizerConfig]:
    """Every block of the study."""
    yield RegularizerConfig()
    for kind, depth, init in itertools.product(
        ("depthwise", "bottleneck"), DEPTHS, ("reference", "identity")
    ):
        values: dict[str, Any] = {"kind": kind, "init": init}
        yield RegularizerConfig(depth=depth, activation="lrelu", **values)


def table(runs: list[Run]) -> list[str]:
    """Lines of text, a row for each kind, depth, initialisation and sign of the first bias."""
    head = "block       depth  init       bias  runs  gain: start      end  loss/ln K  verdict"
    lines = [head]
    for key, group in itertools.groupby(sorted(runs, key=lambda run: run.row), lambda r: r.row):
        of_row = list(group)
        kind, depth, init, sign = key
        start, end, loss = (
            statistics.median(getattr(run, name) for run in of_row)
            for name in ("start_gain", "end_gain", "loss")
        )
        verdicts = [run.verdict for run in of_row]
        counts = {word: verdicts.count(word) for word in ("trained", "slow", "dead")}
        verdict = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        lines.append(
            f"{kind:12}{depth:5}  {init:11}{sign:>4}{len(of_row):6}{start:13.1e}{end:9.1e}"
            f"{loss:11.2f}  {verdict}"
        )
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="of each sign of the first bias")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=BASE_LR, help="the base learning rate")
    parser.add_argument("--each", action="store_true", help="print every run besides")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    seeds = seeds_of_both_signs(args.seeds)
    jobs = [(block, seed, args.steps, args.lr) for block in blocks() for seed in seeds]
    num_labels = len(scenes()[2])
    print(f"{len(jobs)} runs of {args.steps} steps at {args.lr:g}, {num_labels} labels")
    print(f"seeds {seeds}")
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        runs = []
        for run in pool.imap(train, jobs):
            runs.append(run)
            if args.each:
                print(
                    f"{run.block.kind} {run.block.depth} {run.block.init} seed {run.seed} "
                    f"bias {run.bias:+.3f} gain {run.start_gain:.1e} -> {run.end_gain:.1e} "
                    f"loss/ln K {run.loss:.3f} {run.verdict}",
                    flush=True,
                )
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
