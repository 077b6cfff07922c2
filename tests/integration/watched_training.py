"""Drills: `python -m tests.integration.watched_training` breaks a training that Prometheus watches.

A small training runs on a head node of its own, beside an MLflow server, with its storage on a disk
of 24 MiB. One after another, a sample is damaged, MLflow is frozen, the disk is filled, the loader
is slowed, a worker is stopped where it is, workers are killed, a second training has gradients that
are not finite and fewer workers than it asks for, a third waits for nodes, the driver is killed,
and the head is ended. For each the alert must fire (with shortened thresholds and without `for`),
and the run must go on by itself where that is promised. What a small machine cannot be brought to
(a full memory, say) is judged with a threshold that any value is beyond, so that the alert fires
over what a real training shows. Prints what was seen, and ends with exit code 0 or 1. The alerts of
Kubernetes are left to `promtool` (tests/infra/alerts.yaml). Needs root (for the small disk) and
Prometheus (`apt install prometheus`).
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.integration.same_weights import free_ports, head_node, shards_below
from tests.integration.training_runs import Process, terminate, train, write_recipe
from tests.support.mlflow_server import MlflowServer
from tests.support.prometheus_server import PrometheusServer, alerts, expressions, is_installed
from tests.support.train_workers import loaders, train_workers

RUN, NEIGHBOUR, WAITING = "drill", "neighbour", "waiting"
DRILLS = ("mlflow", "storage", "loader", "workers", "neighbours", "answers", "driver")
SHORTER = {
    "lseg:step_age_seconds > 600": "lseg:step_age_seconds > 20",
    "lseg:checkpoint_age_seconds > 600": "lseg:checkpoint_age_seconds > 20",
    "lseg:mlflow_away_seconds > 300": "lseg:mlflow_away_seconds > 10",
}
BEYOND = {
    "LsegOverhead": ("lseg:validation_ratio > 0.5", "lseg:validation_ratio > 0"),
    "LsegRegularizerDead": ("spread_gain) < 0.01", "spread_gain) < 1000"),
    "LsegNoBetterModel": ("validations_since_best >= 3", "validations_since_best >= 0"),
    "LsegDiskFull": ("lseg:disk_used_ratio > 0.8", "lseg:disk_used_ratio > 0"),
    "LsegMemoryFull": ("lseg:memory_used_ratio > 0.92", "lseg:memory_used_ratio > 0"),
}
"""Alerts and their thresholds, for those that cannot be brought about: any value is beyond."""
OTHER_JOBS = ("lseg_job_items", "lseg_evaluation", "lseg_serve")
"""Parts of expressions that trainings and re-trainings give no value."""
REJECTED = """
import time, ray
from pipeline import monitoring
ray.init(address="auto")
labels = {"model": "drill", "outcome": "rejected"}
monitoring.RETRAINING_ACTIVE.set(1, model="drill")
monitoring.RETRAININGS.start(**labels)
time.sleep(25)
for _ in range(4):
    monitoring.RETRAININGS.add(**labels)
time.sleep(25)
"""
"""What re-trainings show whose candidates are rejected, without these."""


class Drill:
    """One training, and what is done to it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        shards = shards_below(folder)  # What `--shards` names is there already.
        _damage(shards)
        self.disk = stack.enter_context(_small_disk(folder / "drill" / "runs"))
        recipe = write_recipe(folder / "drill", shards, 100_000, 10)
        self._server = MlflowServer(folder)
        stack.callback(self._server.kill)
        self._server.start()
        gcs, metrics = free_ports(2)
        self._head = stack.enter_context(ExitStack())
        _, env = self._head.enter_context(head_node(gcs, metrics))
        self.prometheus = stack.enter_context(
            PrometheusServer(folder, [f"127.0.0.1:{metrics}"], 3, SHORTER | dict(BEYOND.values()))
        )
        settings = {
            "train.log_every": 5,
            "train.validate_every": 40,
            "train.storage_patience_s": 600,
            "data.max_bad_share": 0.9,
            "cluster.max_failures": 5,
            "tracking.uri": self._server.uri,
            "model.regularizer.kind": "depthwise",
            "model.regularizer.depth": 1,
        }
        env |= {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
        self._recipe, self._env, self._stack = recipe, env, stack
        self._now("the training begins")
        self._common = settings
        self.training: Process = self._train(RUN)

    def _train(self, name: str, more: Mapping[str, object] | None = None) -> Process:
        settings = self._common | dict(more or {})
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        # Only a job whose cluster is too small looks at how long it may wait for nodes.
        env = self._env | {"LSEG_CLUSTER_WAIT_S": "300"}
        process = train(self._recipe, name, *words, env=env)
        self._stack.callback(process.popen.kill)
        return process

    def run(self, drills: Sequence[str]) -> None:
        """Does one thing after another."""
        self.training.wait_for_step(20)
        self._told("LsegTrainingNotStarted", "its workers have yet to start")
        self._told("LsegBadSamples", "a damaged sample")
        for alert in BEYOND:
            self._told(alert, "any value is beyond its threshold")
        for name in drills:
            getattr(self, name)()
        if tuple(drills) == DRILLS:
            known = {rule["alert"] for rule in alerts()}
            assert self.prometheus.fired() == known, known ^ self.prometheus.fired()
            print(f"each of {len(known)} alerts has fired", flush=True)

    def mlflow(self) -> None:
        """The server stands still, and goes on."""
        self._now("MLflow is frozen")
        self._server.freeze()
        self._told("LsegMlflowAway")
        self._server.thaw()
        self._until("MLflow answers again", lambda: self._value("lseg:mlflow_away_seconds") == 0)

    def storage(self) -> None:
        """The disk of the run's storage is full, and has room again."""
        filler = self.disk / "filler"
        self._now("the disk of run.storage is full")
        _fill(filler)
        self._told("LsegCheckpointOld")
        self._told("LsegCheckpointsLeftOut")
        filler.unlink()
        self._until(
            "a checkpoint is stored", lambda: (self._value("lseg:checkpoint_age_seconds") or 99) < 9
        )

    def loader(self) -> None:
        """The loader is slower than the training."""
        self._now("the loader works a thirtieth of the time")
        with _slowed(loaders()):
            self._told("LsegDataWait")
            self._told("LsegSlow")

    def workers(self) -> None:
        """One stands still; then one is killed, twice."""
        worker = train_workers()[-1]
        self._now("a worker stands still")
        worker.suspend()
        self._told("LsegTrainingStuck")
        worker.resume()
        self._next_steps("it goes on")
        self._now("workers were killed twice")
        for _ in range(2):
            train_workers()[-1].kill()
            self._next_steps("a worker was killed")
        self._told("LsegWorkersFail")

    def answers(self) -> None:
        """Board and rules have a value for what a training shows."""
        asked = [each for each in expressions() if not any(part in each for part in OTHER_JOBS)]
        unanswered = self.prometheus.unanswered(asked)
        assert not unanswered, f"expressions without a value: {unanswered}"
        print(f"{len(asked)} expressions of board and rules had a value", flush=True)

    def driver(self) -> None:
        """The driver is killed, then the head."""
        self._now("the driver is killed")
        self.training.popen.kill()
        self._told("LsegDriverLost")
        self._now("the head is ended")
        self._head.close()
        self._told("LsegTargetDown")

    def neighbours(self) -> None:
        """What other jobs on the same head bring about."""
        diverges = {"train.lr": 1e30, "train.max_nonfinite_steps": 10**6, "train.log_every": 1}
        # Two of three workers fit beside the first training, also by what Ray counts: it knows the
        # other training's workers and not its loaders, and would try three of one CPU for ever.
        elastic = {"cluster.num_workers": 3, "cluster.min_workers": 1}
        elastic |= {"cluster.cpus_per_worker": 1.2}
        self._now("another training with one worker too few")
        neighbour = self._train(NEIGHBOUR, diverges | elastic)
        self._told("LsegWorkersMissing")
        self._told("LsegSkippedSteps", "gradients that are not finite")
        terminate(neighbour)
        assert neighbour.wait() == 143, "\n".join(neighbour.lines[-40:])
        self._now("a job asks for more than there is")
        waiting = self._train(WAITING, {"cluster.num_workers": 12})
        self._told("LsegWaitsForNodes")
        waiting.popen.kill()
        self._now("four candidates are rejected")
        rejected = Process.start([sys.executable, "-c", REJECTED], self._env)
        self._told("LsegCandidatesRejected")
        assert rejected.wait() == 0, "\n".join(rejected.lines[-40:])

    def _value(self, expression: str) -> float | None:
        return next(iter(self.prometheus.query(expression).values()), None)

    def _now(self, cause: str) -> None:
        """Says what is about to happen; what fires before does not count."""
        self._cause, self._since = cause, time.time()

    def _told(self, alert: str, cause: str = "") -> None:
        """Waits for an alert by what has just happened, or by a cause that was there all along."""
        if cause:
            self.prometheus.wait_for(alert)
            print(f"{cause}: {alert} has fired", flush=True)
        else:
            seconds = self.prometheus.wait_for(alert, self._since)
            print(f"{self._cause}: {alert} fires after {seconds:.0f} s", flush=True)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < 420, f"not seen: {what}"
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


@contextmanager
def _slowed(processes: list[psutil.Process]) -> Iterator[None]:
    """Lets processes work a thirtieth of the time only."""
    assert processes
    ends = threading.Event()

    def slow_down() -> None:
        while not ends.is_set():
            for each in processes:
                each.suspend()
            ends.wait(2.9)
            for each in processes:
                each.resume()
            ends.wait(0.1)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


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
    parser.add_argument("--only", nargs="+", choices=DRILLS, default=DRILLS)
    given = parser.parse_args(argv)
    if not is_installed() or os.getuid():
        print("needs root, and Prometheus: apt install prometheus")
        return 2
    with tempfile.TemporaryDirectory(prefix="drill-") as folder, ExitStack() as stack:
        if given.shards:
            shutil.copytree(given.shards, Path(folder) / "shards")
        drill = Drill(Path(folder), stack)
        # Ray has put its own in place, after which nothing would be ended.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            drill.run(given.only)
        except AssertionError as error:
            print(f"FAILED: {error}", flush=True)
            return 1
        finally:
            if given.log:
                given.log.write_text("\n".join(drill.training.lines) + "\n")
    print(f"{', '.join(given.only)}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
