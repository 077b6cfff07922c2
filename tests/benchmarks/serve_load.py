"""A service under load: latency, memory and lost requests, also while the champion changes.

    python -m tests.benchmarks.serve_load [--on ray] [--checkpoints DIR DIR]

Registers two checkpoints (tiny ones with random weights by default) in an MLflow of its own, serves
`models:/lseg@champion` in a process of its own, and lets clients ask masks of images of mixed
sizes, each client one after the other. Twice: with one champion, and with one that changes all the
time. Each answer must be the mask that the model named in its header gives to the image alone, but
for one pixel in ten thousand: in a batch sums are rounded otherwise, and labels that are as good as
equal change places. Prints the latency by percentile and the memory of the service's processes, and
ends with 1 where a request was lost or answered by neither model, or where the memory grew by more
than --max_growth_mib.
"""

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from pipeline.inference.served_limits import Limits
from pipeline.inference.served_network import ServedNetwork
from pipeline.registry.registry import CHAMPION, Registry
from pipeline.tracking.mlflow_run import client_of
from tests.pipeline.serving.conftest import png
from tests.support.tiny_checkpoint import tiny_checkpoint

SIZES = ((240, 320), (480, 640), (336, 504), (720, 1280))
"""Height and width of the images that are asked in turn."""
LABELS = ("road", "sky", "wet grass")
JOBS = {"page": "jobs/playground.py", "ray": "jobs/serve.py"}
API_KEY = "load-" + "k" * 24
MAX_OFF = 1e-4
"""Share of a mask's pixels that rounding may change: eight of two million were seen in batches."""
MAX_GROWTH_MIB = 512
"""Memory that a load may take beyond the idle service, with a tiny network; two of them and the
images of 20 clients took 336."""
OUT = Path("runs/serve_load.json")


class Answered(NamedTuple):
    """The answer to one request."""

    seconds: float
    """From the first try."""
    model: str
    """What its header names."""
    off: float
    """Share of its pixels that differ from that model's mask."""


@dataclass
class Load:
    """The outcome of some requests; threads append to its lists."""

    answers: list[Answered] = field(default_factory=list)
    sent_away: list[int] = field(default_factory=list)
    """Requests that got 429, and were sent again after a second."""
    lost: list[str] = field(default_factory=list)
    """Why requests had no answer."""
    peak_mib: float = 0

    @property
    def is_good(self) -> bool:
        """Whether each request has the answer that it must have."""
        return not self.lost and all(answer.off <= MAX_OFF for answer in self.answers)

    def figures(self) -> dict[str, Any]:
        """The figures by name."""
        seconds = [answer.seconds for answer in self.answers]
        parts = np.percentile(seconds, (50, 90, 99, 100)).round(3).tolist() if seconds else []
        return {
            "answers": dict(Counter(answer.model for answer in self.answers)),
            "lost": len(self.lost),
            "wrong": sum(answer.off > MAX_OFF for answer in self.answers),
            "largest_off": max((answer.off for answer in self.answers), default=0.0),
            "sent_away": len(self.sent_away),
            "latency_s": dict(zip(("p50", "p90", "p99", "longest"), parts, strict=False)),
            "peak_mib": round(self.peak_mib),
        }


def main() -> int:
    """Runs both loads and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", choices=sorted(JOBS), default="page")
    parser.add_argument("--checkpoints", nargs=2, type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--max_growth_mib", type=float, default=MAX_GROWTH_MIB)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lseg-load-") as scratch:
        folders = options.checkpoints or [
            tiny_checkpoint(Path(scratch) / f"step_0000000{seed}", seed) for seed in (1, 2)
        ]
        registry, versions = registered(f"sqlite:///{scratch}/mlflow.db", folders)
        images = [png(number, *size) for number, size in enumerate(SIZES)]
        wanted = {
            f"models:/{registry.name}/{version}": masks(folder, images)
            for version, folder in zip(versions, folders, strict=True)
        }
        assert any(not np.array_equal(*pair) for pair in zip(*wanted.values(), strict=True)), (
            "the two models answer alike, so that nothing would show which one answered"
        )
        with service(options.on, registry.tracking_uri, Path(scratch)) as (address, process):
            asked = Asked(address, images, wanted, process)
            for number in range(len(images)):
                asked.ask(Load(), number)  # What the first calls load stays.
            idle_mib = memory_mib(process)
            steady = asked.load(options.requests, options.clients)

            def change(number: int) -> None:
                registry.set_alias(CHAMPION, versions[(number + 1) % 2])

            changing = asked.load(options.requests, options.clients, change, options.changes)
    found = {
        "on": options.on,
        "requests": options.requests,
        "clients": options.clients,
        "idle_mib": round(idle_mib),
        "steady": steady.figures(),
        "changing": {"changes": options.changes, **changing.figures()},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    for reason in (steady.lost + changing.lost)[:5]:
        print(f"lost: {reason}")
    reasons = faults(steady, changing, idle_mib + options.max_growth_mib)
    for reason in reasons:
        print(f"failed: {reason}")
    return 1 if reasons else 0


def faults(steady: Load, changing: Load, max_mib: float) -> list[str]:
    """What a service under load must not do and did."""
    found = []
    for name, load in (("steady", steady), ("changing", changing)):
        if not load.is_good:
            found.append(f"{name}: requests were lost, or answered wrongly")
        if load.peak_mib > max_mib:
            found.append(f"{name}: {load.peak_mib:.0f} MiB: must be at most {max_mib:.0f}")
    if len({answer.model for answer in changing.answers}) != 2:
        found.append("changing: one of the two models never answered")
    return found


def differing(wanted: np.ndarray, mask: np.ndarray) -> float:
    """The share of the pixels in which two masks differ; 1 where their sizes do."""
    return float((wanted != mask).mean()) if wanted.shape == mask.shape else 1.0


class Asked:
    """A service, the images that it is asked, and the masks that it must answer."""

    def __init__(
        self,
        address: str,
        images: list[bytes],
        wanted: dict[str, list[np.ndarray]],
        process: psutil.Process,
    ) -> None:
        self._address, self._images = address, images
        self._wanted, self._process = wanted, process

    def load(
        self,
        num_requests: int,
        num_clients: int,
        change: Callable[[int], None] = lambda number: None,
        num_changes: int = 0,
    ) -> Load:
        """Sends all requests, and makes the changes evenly between the answers."""
        load, ends = Load(), threading.Event()
        watch = threading.Thread(target=self._watch, args=(load, ends))
        watch.start()
        try:
            with ThreadPoolExecutor(num_clients) as pool:
                todo = [pool.submit(self.ask, load, number) for number in range(num_requests)]
                for number in range(num_changes):
                    while len(load.answers) + len(load.lost) < num_requests * number / num_changes:
                        time.sleep(0.01)
                    change(number)
                for one in todo:
                    one.result()
        finally:
            ends.set()
            watch.join()
        return load

    def ask(self, load: Load, number: int) -> None:
        """Asks a mask until there is one, and compares it."""
        began = time.monotonic()
        place = number % len(self._images)
        try:
            while (found := self._post(place)) is None:
                load.sent_away.append(number)
                time.sleep(1)
        except OSError as error:
            body = error.read()[:300] if isinstance(error, urllib.error.HTTPError) else b""
            load.lost.append(f"{error} {body!r}")
            return
        model, mask = found
        off = differing(self._wanted[model][place], mask)
        load.answers.append(Answered(time.monotonic() - began, model, off))

    def _post(self, place: int) -> tuple[str, np.ndarray] | None:
        """The model that answers and its mask; None where the service is too busy."""
        image = base64.b64encode(self._images[place]).decode()
        body = json.dumps({"image": image, "labels": LABELS, "answer": "png"}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        request = urllib.request.Request(f"{self._address}v1/segment", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                mask = np.array(Image.open(io.BytesIO(answer.read())))
                return answer.headers["LSeg-Model"], mask
        except urllib.error.HTTPError as error:
            if error.code == 429:
                return None
            raise

    def _watch(self, load: Load, ends: threading.Event) -> None:
        while not ends.wait(0.1):
            load.peak_mib = max(load.peak_mib, memory_mib(self._process))


def registered(tracking_uri: str, folders: list[Path]) -> tuple[Registry, list[str]]:
    """Registers the checkpoints as versions, the first of them as champion."""
    client = client_of(tracking_uri)
    place = tracking_uri.removeprefix("sqlite:///").rpartition("/")[0]
    experiment = client.create_experiment("load", artifact_location=f"{place}/artifacts")
    registry = Registry(tracking_uri)
    versions = []
    for folder in folders:
        run = client.create_run(experiment)
        versions.append(registry.register(folder, run_id=run.info.run_id).version)
        client.set_terminated(run.info.run_id)
    registry.set_alias(CHAMPION, versions[0])
    return registry, versions


def masks(folder: Path, images: list[bytes]) -> list[np.ndarray]:
    """What a checkpoint answers, without any service."""
    network = ServedNetwork(folder, "cpu", Limits())
    question = network.question({"labels": LABELS})
    found = []
    for data in images:
        image = network.decode("image", data)
        size = (image.shape[0], image.shape[1])
        found.append(network.label_ids(network.see(image, question)[None], size, question)[0])
    return found


@contextmanager
def service(on: str, tracking_uri: str, scratch: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The service at its address, in a process that ends with the block."""
    words = [sys.executable, JOBS[on], "--checkpoint", "models:/lseg@champion", "--port", "0"]
    words += ["--follow_s", "0.3"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "LSEG_API_KEY": API_KEY,
        "PYTHONPATH": os.getcwd(),
    }
    with (scratch / "log").open("w") as log, subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as job:  # fmt: skip
        try:
            assert job.stdout is not None
            line = job.stdout.readline()
            found = re.search(r" answers at (http://127\.0\.0\.1:\d+/)", line)
            assert found, f"the service did not start: {(scratch / 'log').read_text()[-2000:]}"
            yield found[1], psutil.Process(job.pid)
        finally:
            job.terminate()
            try:
                job.wait(60)
            except subprocess.TimeoutExpired:
                job.kill()


def memory_mib(process: psutil.Process) -> float:
    """Memory of a process and of those that it has started, without what they share."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue  # It has just ended.
    return total / 2**20


if __name__ == "__main__":
    sys.exit(main())
