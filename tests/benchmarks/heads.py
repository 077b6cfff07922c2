"""Heads at equal CPU time on the demo's scenes: what each has learned after the same seconds.

    python -m tests.benchmarks.heads [--minutes 6] [--seeds 0] [--heads dot dot-aligned cost]
        [--val_scenes 6] [--out FOLDER]

One backbone for all: the demo's tiny ViT, as one of CLIP's that has a projection to the text
vectors, from scratch. How long a step takes is measured first, in this process, with the heads by
turns; each is then given as many steps as fit in the CPU minutes, and trained and judged by
`jobs/demo.py`, in processes of its own. Loaders and evaluation are not counted. The cost head is
asked fewer labels a step, and trains smaller batches, or it would make a few dozen steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from jobs.cli import parse
from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from pipeline.demo.world import world_classes
from pipeline.evaluation.behaviours.classes import HELD_OUT
from pipeline.training.config import TrainConfig, TrainMixConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "jobs" / "recipes" / "demo.yaml"
BACKBONE = {
    "name": "vit_base_patch16_clip_quickgelu_224",
    "pretrained": False,
    "kwargs": {
        "patch_size": 8,
        "depth": 4,
        "embed_dim": 96,
        "num_heads": 3,
        "img_size": 96,
        "num_classes": 512,
    },
}
HEADS: dict[str, dict[str, Any]] = {
    "dot": {"labels": 0, "batch": 8, "head": {"kind": "dot"}},
    "dot-aligned": {"labels": 0, "batch": 8, "head": {"kind": "dot-aligned"}},
    # It has no decoder, whose width 256 stands for.
    "cost": {
        "labels": 16,
        "batch": 4,
        "head": {"kind": "cost", "padded": 0},
        "model": {"features": 256},
    },
}
"""Labels of a step (0: all), images of a step, and settings of the network, by head."""
FIGURES = ("seen_miou", "unseen_miou", "untrained_unseen_miou", "unseen_chance_miou")
ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, trains, and prints the table."""
    given = _parser().parse_args(argv)
    out = Path(given.out).resolve()
    seconds = step_seconds(given.heads, out)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in given.seeds:
        for head in given.heads:
            steps = max(1, round(60 * given.minutes / seconds[head]))
            figures = trained(out, head, seed, steps, given.val_scenes)
            print(json.dumps({"head": head, "seed": seed, "steps": steps} | figures), flush=True)
            found.setdefault(head, []).append(figures | {"steps": steps})
    for line in table(found):
        print(line)


def recipe(head: str) -> dict[str, Any]:
    """The demo's recipe with a head."""
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    setting = HEADS[head]
    content["model"] |= {"backbone": BACKBONE, "head": setting["head"]}
    content["model"] |= setting.get("model", {})
    content["train"] |= {"batch_size": setting["batch"], "labels_per_step": setting["labels"]}
    content["train"]["log_every"] = 10
    return content


def write_recipe(head: str, folder: Path) -> Path:
    """The demo's recipe with a head, as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{head}.yaml"
    path.write_text(yaml.safe_dump(recipe(head)), encoding="utf-8")
    return path


def step_seconds(heads: Iterable[str], out: Path) -> dict[str, float]:
    """CPU seconds of a training step over all workers: the median of some, the heads by turns."""
    torch.set_num_threads(1)
    steps = {head: _Step(head, write_recipe(head, out)) for head in heads}
    taken: dict[str, list[float]] = {head: [] for head in steps}
    for _ in range(ROUNDS + 1):
        for head, step in steps.items():
            taken[head].append(step.seconds())
    # The first one prepares kernels.
    return {head: statistics.median(times[1:]) for head, times in taken.items()}


def asked_labels(train: TrainConfig) -> int:
    """Labels that a step of the demo asks on average where it asks all."""
    labels = len(world_classes()) - len(HELD_OUT)
    return round(labels * (1 - train.other.share * train.other.drop)) + train.distractors.count


class _Step:
    """Forward and backward of a step's images with random weights, images and words."""

    def __init__(self, head: str, path: Path) -> None:
        torch.manual_seed(0)
        argv = ["--config", str(path), "--data.shards", str(path.parent)]
        self.config = parse(TrainMixConfig, argv)
        self.lseg: LSeg = build_lseg(self.config.model, 512).train()
        train, crop = self.config.train, self.config.data.augment.crop_px
        labels = train.labels_per_step or asked_labels(train)
        self.image = torch.randn(train.batch_size, 3, crop, crop)
        self.label = torch.randint(labels, (len(self.image), crop, crop))
        self.text = torch.nn.functional.normalize(torch.randn(labels, 512), dim=1)

    def seconds(self) -> float:
        began = time.process_time()
        logits = self.lseg(self.image, self.text)
        segmentation_loss(logits, self.label, kind=self.config.loss)[0].backward()
        self.lseg.zero_grad()
        return time.process_time() - began


def trained(folder: Path, head: str, seed: int, steps: int, scenes: int) -> dict[str, float]:
    """Trains and judges one network by the demo's job: its figures."""
    path, out = write_recipe(head, folder), folder / f"{head}-{seed}"
    command = [sys.executable, "jobs/demo.py", "--recipe", str(path), "--out", str(out)]
    command += ["--seed", str(seed), "--steps", str(steps)]
    command += ["--val_scenes", str(scenes)]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    figures = {name: report[name] for name in FIGURES} | report["behaviours"]
    return {**figures, "train_s": report["seconds"]["train"]}


def table(found: dict[str, list[dict[str, float]]]) -> Iterable[str]:
    """Lines of the table: a figure, and for each head its mean and spread over seeds."""
    yield f"\n{'figure':24}" + "".join(f"{head:>18}" for head in found)
    names = dict.fromkeys(name for rows in found.values() for row in rows for name in row)
    for name in names:
        cells = []
        for rows in found.values():
            values = [row[name] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} +- {spread:.3f}")
        yield f"{name:24}" + "".join(f"{cell:>18}" for cell in cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU minutes of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--val_scenes", type=int, default=6, help="of each dataset")
    parser.add_argument("--out", default="runs/heads-benchmark")
    return parser


if __name__ == "__main__":
    main()
