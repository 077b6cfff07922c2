"""Drills: `python -m tests.integration.watched_training` breaks a training that Prometheus watches.

A small training runs on a head node of its own, beside an MLflow server, with its storage on a disk
of 24 MiB. One after another, a sample is damaged, MLflow is frozen, the disk is filled, a worker is
stopped where it is, workers are killed, the driver is killed, and the head is ended. For each the
alert must fire (with shortened thresholds and without `for`), and the run must go on by itself
where that is promised. Prints what was seen, and ends with exit code 0 or 1. Needs root (for the
small disk) and Prometheus (`apt install prometheus`).
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.same_weights import free_ports, head_node, shards_below
from tests.integration.training_runs import Process, train, write_recipe
from tests.support.mlflow_server import MlflowServer
from tests.support.prometheus_server import PrometheusServer, expressions, is_installed
from tests.support.train_workers import train_workers

RUN = "drill"
SHORTER = {
    "lseg:step_age_seconds > 600": "lseg:step_age_seconds > 20",
    "lseg:checkpoint_age_seconds > 600": "lseg:checkpoint_age_seconds > 20",
    "lseg:mlflow_away_seconds > 300": "lseg:mlflow_away_seconds > 10",
}
OTHER_JOBS = ("lseg_job_items", "lseg_evaluation", "lseg_retraining", "label_spread_gain")
"""Parts of expressions that this training gives no value."""


class Drill:
    """One training, and what is done to it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        shards = shards_below(folder)  # What `--shards` names is there already.
        _damage(shards)
        self.disk = stack.enter_context(_small_disk(folder / "drill" / "runs"))
        recipe = write_recipe(folder / "drill", shards, 100_000, 10)
        self.mlflow = MlflowServer(folder)
        stack.callback(self.mlflow.kill)
        self.mlflow.start()
        gcs, metrics = free_ports(2)
        self._head = stack.enter_context(ExitStack())
        _, env = self._head.enter_context(head_node(gcs, metrics))
        self.prometheus = stack.enter_context(
            PrometheusServer(folder, [f"127.0.0.1:{metrics}"], 3, SHORTER)
        )
        settings = {
            "train.log_every": 5,
            "train.validate_every": 40,
            "train.storage_patience_s": 600,
            "data.max_bad_share": 0.9,
            "cluster.max_failures": 5,
            "tracking.uri": self.mlflow.uri,
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        env |= {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
        self.training: Process = train(recipe, RUN, *words, env=env)
        stack.callback(self.training.popen.kill)

    def run(self) -> None:
        """Does one thing after another."""
        self.training.wait_for_step(20)
        self._told("a damaged sample", "LsegBadSamples")
        self.mlflow.freeze()
        self._told("MLflow is frozen", "LsegMlflowAway")
        self.mlflow.thaw()
        self._until("MLflow answers again", lambda: self._value("lseg:mlflow_away_seconds") == 0)
        filler = self.disk / "filler"
        _fill(filler)
        self._told("the disk of run.storage is full", "LsegCheckpointOld")
        self._told("the disk of run.storage is full", "LsegCheckpointsLeftOut")
        filler.unlink()
        self._until(
            "a checkpoint is stored", lambda: (self._value("lseg:checkpoint_age_seconds") or 99) < 9
        )
        worker = train_workers()[-1]
        worker.suspend()
        self._told("a worker stands still", "LsegTrainingStuck")
        worker.resume()
        self._next_steps("it goes on")
        for _ in range(2):
            train_workers()[-1].kill()
            self._next_steps("a worker was killed")
        self._told("workers were killed twice", "LsegWorkersFail")
        unanswered = self.prometheus.unanswered(
            each for each in expressions() if not any(part in each for part in OTHER_JOBS)
        )
        assert not unanswered, f"expressions without a value: {unanswered}"
        print("every expression of board and rules for a training had a value", flush=True)
        self.training.popen.kill()
        self._told("the driver is killed", "LsegDriverLost")
        self._head.close()
        self._told("the head is ended", "LsegTargetDown")

    def _value(self, expression: str) -> float | None:
        return next(iter(self.prometheus.query(expression).values()), None)

    def _told(self, what: str, alert: str) -> None:
        seconds = self.prometheus.wait_for(alert)
        print(f"{what}: {alert} fires after {seconds:.0f} s", flush=True)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < 240, f"not seen: {what}"
            assert self.training.popen.poll() is None, "\n".join(self.training.lines[-40:])
            time.sleep(1)
        print(f"    {what} after {time.monotonic() - began:.0f} s", flush=True)

    def _next_steps(self, what: str) -> None:
        """Waits for a line of log after now."""
        count = len(self.training.steps)
        self._until(f"{what}: next steps", lambda: len(self.training.steps) > count + 1)


def _damage(shards: Path) -> None:
    """Overwrites a part of one sample's picture."""
    manifest = next(path for path in shards.rglob("manifest.json") if "train" in path.parts)
    tar = next(manifest.parent.glob("*.tar"))
    with tar.open("r+b") as file:
        file.seek(1024)
        file.write(b"\0" * 64)
    assert json.loads(manifest.read_text())


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def main(argv: list[str] | None = None) -> int:
    """Runs the drills."""
    parser = argparse.ArgumentParser(description="Drills on a training that Prometheus watches.")
    parser.add_argument("--log", type=Path, help="File that gets the log of the training.")
    parser.add_argument("--shards", type=Path, help="Shards to copy; else they are made.")
    given = parser.parse_args(argv)
    if not is_installed() or os.getuid():
        print("needs root, and Prometheus: apt install prometheus")
        return 2
    with tempfile.TemporaryDirectory(prefix="drill-") as folder, ExitStack() as stack:
        if given.shards:
            shutil.copytree(given.shards, Path(folder) / "shards")
        drill = Drill(Path(folder), stack)
        try:
            drill.run()
        except AssertionError as error:
            print(f"FAILED: {error}", flush=True)
            return 1
        finally:
            if given.log:
                given.log.write_text("\n".join(drill.training.lines) + "\n")
    print("all drills: ok")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
