"""What a checkpoint costs the training: the step's time with one every 20 steps against none.

    python -m tests.benchmarks.checkpoint_step [--rounds 8] [--steps 20] [--threads 1]

The demo's network, loop and saver, of one worker with four images a step, on the CPU. In each round
come a block of steps without a checkpoint, one with a checkpoint as the loop makes it (copied, then
written and stored by threads), and one in which the step waits until it is written, as it would be
without them. Wall time, and CPU time of the whole process with its threads, of each block include
all until the checkpoint is stored. Printed are the medians, and the median and the range of the
ratios to the block without in the same round. Exit code 1 if the loop's way costs more than 5 % of
the wall time.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ray.train
import torch
from ray.train.v2._internal.execution.storage import StorageContext
from torch import distributed as dist

from jobs.cli import parse
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import universal
from pipeline.demo.world import world_classes
from pipeline.training.config import TrainMixConfig
from tests.support.lone_worker import LoneWorker
from tests.support.mini_shards import write_manifests

MODES = ("none", "threads", "in the step")
TARGET = 0.05


class Storing:
    """In place of Ray Train's reports: one thread that stores, as its own does."""

    def __init__(self, run: Path) -> None:
        self._run, self._thread = run, ThreadPoolExecutor(1)
        self._last: Any = None

    def report(
        self, metrics: Any, *, checkpoint: Any, checkpoint_dir_name: str, **how: Any
    ) -> None:
        if checkpoint is not None:
            store = how["checkpoint_upload_fn"]
            self._last = self._thread.submit(store, checkpoint, checkpoint_dir_name)

    def wait(self) -> None:
        """Waits until all is stored."""
        if self._last is not None:
            self._last.result()

    def clear(self) -> None:
        """Removes what was stored."""
        for folder in self._run.glob("step_*"):
            shutil.rmtree(folder)


def write_demo_manifest(shards: Path) -> None:
    """A manifest whose labels show the classes of the demo's scenes; there is nothing to read."""
    write_manifests(shards, ("ade20k",), "train")
    path = shards / "ade20k/train/manifest.json"
    classes = universal().classes
    seen = set(world_classes())
    counts = tuple(int(name in seen) for name in classes)
    manifest = replace(Manifest.from_json(path.read_text()), class_pixels=counts)
    path.write_text(manifest.to_json())


@contextmanager
def worker(folder: Path) -> Iterator[tuple[LoneWorker, Storing]]:
    """A worker of the demo's training, on noise."""
    write_demo_manifest(folder / "shards")
    recipe = ["--config", "jobs/recipes/demo.yaml", "--data.shards", str(folder / "shards")]
    recipe += ["--run.storage", str(folder / "runs"), "--train.batch_size", "4"]
    config = parse(TrainMixConfig, [*recipe, "--cluster.num_workers", "1"])
    config = replace(config, train=replace(config.train, steps=10**6, keep_best=""))
    store = StorageContext(str(folder / "runs"), config.run.name)
    storing = Storing(folder / "runs" / config.run.name)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    context = SimpleNamespace(get_storage=mock.Mock(return_value=store))
    with (
        mock.patch.object(ray.train, "get_context", return_value=context),
        mock.patch.object(ray.train, "report", storing.report),
    ):
        yield LoneWorker(config), storing
    dist.destroy_process_group()


def block(lone: LoneWorker, storing: Storing, mode: str, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds a step of a block with one checkpoint, or with none."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(steps):
        news = lone.loop.step(lone.batches)[2]
        if news:
            lone.loop.end_save()
        if number == 0 and mode != "none":
            lone.loop.saver.save({}, required=False)
            if mode == "in the step":
                lone.loop.end_save()
    lone.loop.saver.wait()
    storing.wait()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    storing.clear()
    return spent[0] / steps, spent[1] / steps


def measure(rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """The blocks of all rounds, by mode; the order of the modes turns from round to round."""
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, worker(Path(folder)) as (lone, storing):
        for mode in MODES:
            block(lone, storing, mode, min(steps, 5))  # To warm up.
        for turn in range(rounds):
            for number in range(len(MODES)):
                mode = MODES[(turn + number) % len(MODES)]
                found[mode].append(block(lone, storing, mode, steps))
    return found


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="Steps for each checkpoint.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of the network's kernels.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.rounds, args.steps)
    print(f"{'a checkpoint':14}{'wall ms':>9}{'CPU ms':>9}   ratio of wall       ratio of CPU")
    median = 0.0
    for mode, blocks in found.items():
        cells = [f"{1000 * statistics.median(b[which] for b in blocks):9.1f}" for which in (0, 1)]
        for which in (0, 1):
            ratios = [b[which] / a[which] for a, b in zip(found["none"], blocks, strict=True)]
            low, high = min(ratios), max(ratios)
            cells.append(f"   {statistics.median(ratios):.3f} ({low:.3f}-{high:.3f})")
            if (mode, which) == ("threads", 0):
                median = statistics.median(ratios)
        print(f"{mode:14}{''.join(cells)}", flush=True)
    print(f"wanted: at most {1 + TARGET:.2f} of the wall time, by threads")
    return int(median > 1 + TARGET)


if __name__ == "__main__":
    sys.exit(main())
