"""Real runs of `jobs/train_mix.py` in processes of their own, to be disturbed from outside."""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.demo.layouts import write_mini_seven
from tests.support.mini_shards import paint_vectors
from tests.support.train_workers import train_workers

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH = 12
REPORT_S = 3.0
"""Seconds after which a checkpoint counts: it is written and stored, and Ray asks every 2 s."""

RECIPE = """\
run: {{storage: {storage}, seed: 5}}
data:
  shards: {shards}
  augment: {{crop_px: 48, base_px: 64, scale: [0.5, 1.25]}}
  num_loaders: 1
  loader_cpus: 0.25
  loader_threads: 1
model: {model}
train:
  steps: {steps}
  batch_size: {batch}
  lr: 0.004
  warmup_steps: 5
  clip_norm: 1.0
  other: {{share: 0.5}}
  log_every: 1
  validate_every: 0
  val_images: 1
  checkpoint_every: {every}
  precision: {precision}
  labels_per_step: {labels}
cluster: {{num_workers: 2, cpus_per_worker: 0.5, threads_per_worker: 1}}
"""

SIZE = "patch_size: 8, depth: 4, embed_dim: 32, num_heads: 2, img_size: 48"
MODELS = {
    "dot": f"""
  backbone: {{name: vit_tiny_patch16_224, pretrained: false, kwargs: {{{SIZE}}}}}
  text: {{encoder: stand-in}}
  features: 16""",
    # Every step asks fewer labels than the head fills up to (and a CPU could compute).
    "cost": f"""
  backbone:
    name: vit_base_patch16_clip_quickgelu_224
    pretrained: false
    kwargs: {{{SIZE}, num_classes: 512}}
  text: {{encoder: stand-in}}
  head: {{kind: cost, padded: 32}}""",
}
"""The tiny network of the runs, by its head."""
LABELS = {"dot": 0, "cost": 16}
"""`train.labels_per_step`, by the head."""


def environment(**more: str) -> dict[str, str]:
    """For the processes: this checkout, quiet, one thread."""
    return {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }


def write_shards(folder: Path, per_dataset: int = 12) -> Path:
    """Shards of the mini-seven; Ray must be running."""
    roots = write_mini_seven(folder / "raw", paint_vectors(), 5, per_dataset, 2)
    given = RootsConfig(**{name: str(root) for name, root in roots.items()})
    prepare(PrepareConfig(roots=given, out=str(folder / "shards"), samples_per_shard=6))
    return folder / "shards"


def recipe_text(
    storage: str | Path,
    shards: Path,
    steps: int,
    every: int,
    precision: str = "fp32",
    batch: int = BATCH,
    head: str = "dot",
) -> str:
    """A recipe of a short training with checkpoints every `every` steps."""
    given = {"steps": steps, "batch": batch, "every": every, "precision": precision}
    given |= {"model": MODELS[head], "labels": LABELS[head]}
    return RECIPE.format(storage=storage, shards=shards, **given)


def write_recipe(folder: Path, shards: Path, *given: Any, **settings: Any) -> Path:
    """Writes the recipe of all runs below `folder`; what else it takes, `recipe_text` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(folder / "runs", shards, *given, **settings))
    return path


@dataclass
class Process:
    """A running `train_mix.py` (or its submission), its lines, and when each step was logged."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    steps: list[tuple[float, int]] = field(default_factory=list)
    """Monotonic time and number of each step logged."""

    @classmethod
    def start(cls, command: list[str], env: dict[str, str] | None = None) -> "Process":
        popen = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=env or environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process = cls(popen)
        threading.Thread(target=process._read, daemon=True).start()
        return process

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"\bstep (\d+)/\d+  loss", line):
                self.steps.append((time.monotonic(), int(found.group(1))))

    @property
    def step(self) -> int:
        """The newest step logged."""
        return self.steps[-1][1] if self.steps else 0

    def wait_for_step(self, step: int, timeout_s: float = 400) -> None:
        """Waits until a step at or after `step` was logged."""
        deadline = time.monotonic() + timeout_s
        while self.step < step:
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no step {step}:\n" + "\n".join(self.lines[-40:]))
            time.sleep(0.05)

    def wait(self, timeout_s: float = 900) -> int:
        """Waits for the end; the exit code."""
        return self.popen.wait(timeout_s)

    def workers(self) -> list[psutil.Process]:
        """The training workers of the Ray that the process started."""
        return train_workers(psutil.Process(self.popen.pid))

    def kill_worker(self) -> "Kill":
        """Kills one worker by SIGKILL; waits for the next step."""
        before, began = self.step, time.monotonic()
        self.workers()[-1].kill()
        while True:
            later = [(t, step) for t, step in self.steps if t > began + 2.0]
            if later and later[0][1] <= before + 1:
                when, step = later[0]
                late = sum(t > began - REPORT_S for t, _ in self.steps if t <= began)
                return Kill(before, step, when - began, late)
            if self.popen.poll() is not None or time.monotonic() - began > 300:
                raise RuntimeError("no step after the kill:\n" + "\n".join(self.lines[-40:]))
            time.sleep(0.05)


@dataclass(frozen=True)
class Kill:
    """What a SIGKILL cost."""

    step: int
    """Newest step that was logged before."""
    resumed_at: int
    """First step that was logged after."""
    seconds: float
    """From the kill to that step."""
    late: int
    """Steps that were logged in the last `REPORT_S` before."""

    @property
    def lost(self) -> int:
        """Steps that were made twice."""
        return self.step - self.resumed_at + 1


def train(recipe: Path, name: str, *arguments: str, env: dict[str, str] | None = None) -> Process:
    """Starts a run, on a Ray of its own unless the environment names another."""
    command = [sys.executable, "jobs/train_mix.py", "--config", str(recipe), "--run.name", name]
    return Process.start([*command, *arguments], env)


def terminate(process: Process) -> None:
    """What `kill PID` does."""
    process.popen.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Difference:
    """Between two finished runs."""

    same_order: bool
    absolute: float
    """Largest over all weights and buffers."""
    relative: float
    """Largest over all tensors of the distance divided by the norm (at least 1e-3)."""
    overall: float
    """Distance divided by norm, of all tensors as one vector."""


def compare(runs: Path, one: str, other: str, steps: int) -> Difference:
    """Compares the last checkpoints of two runs below `runs`; all weights must be finite."""
    folders = [runs / name / f"step_{steps:08d}" for name in (one, other)]
    orders = [(folder / "order.txt").read_text() for folder in folders]
    assert orders[0].count("\n") == steps
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    absolute = relative = distance = norm = 0.0
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert value.isfinite().all(), name
        assert second[name].isfinite().all(), name
        difference = (second[name].double() - value.double()).abs()
        absolute = max(absolute, float(difference.max()) if difference.numel() else 0.0)
        far, long = float(difference.norm()), float(value.double().norm())
        relative = max(relative, far / max(long, 1e-3))
        distance, norm = math.hypot(distance, far), math.hypot(norm, long)
    return Difference(orders[0] == orders[1], absolute, relative, distance / norm)
