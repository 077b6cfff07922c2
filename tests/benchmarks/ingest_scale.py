"""What the machinery of the ingest costs, by number of consumers and by length of the run.

    python -m tests.benchmarks.ingest_scale [--consumers 2,8,64] [--steps 1000,100000,10000000]
        [--rounds 3] [--seconds 20] [--out runs/ingest_scale.json]

Nodes are simulated: `ray.cluster_utils.Cluster` starts each with a raylet and an object store of
its own, up to eight consumers on each. The streams are those that Ray Train gets for its workers
(`StreamDealer`). Only the decoding is missing: a loader copies one crop instead, so that what is
measured is the machinery. The consumers of a node are threads of one process, and check that every
row comes in order and that every crop was made on their own node.

CPU is read from every process of the cluster, in a window in the middle of the stream with all
loaders alive. `central_cpu_ms_per_image` is that of the busiest single process which is neither a
loader nor a consumer, for each image of all consumers. `first_batch_s` counts from the request of
the streams until every consumer has a batch, `driver_mib` is what the process that asks for them
holds then. Each case runs in a driver of its own; figures by number of steps are medians over the
rounds, of the fewest consumers; the first case on a new cluster, which starts more processes, is
made once more before them. Exit code 1 if a target is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster

from jobs.local_ray import require_token
from pipeline.data.ingest import stream
from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.config import DataConfig
from pipeline.data.ingest.mixture import Row
from pipeline.training.config import ClusterConfig, RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.driver.stream import RemainingRows, StreamDealer
from pipeline.training.plan import make_plan
from tests.benchmarks.ingest_samples import plain_picture, write_shards

ROWS = 4
"""Crops of a consumer's batch, as the recipes of 8 GPUs have them."""
CROP_PX = 192
"""Small, so that the blocks of eight consumers fit into the store of a simulated node."""
PER_NODE = 8
STORE = 1 << 30
CPUS_PER_NODE, LOADERS = 4, 1
ROLES = {
    "MapWorker": "loader",
    "Consumers": "consumer",
    "SplitCoordinator": "coordinator",
    "BlockNumbers": "source",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "dashboard": "dashboard",
    "runtime_env": "agent",
}
LOADED = ("loader", "consumer")
TARGET_CPU_MS, TARGET_SHARE, TARGET_MIB = 0.05, 0.10, 50


class CopyLoader(stream.BlockLoader):
    """A loader that decodes nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loader = _Copies(args[2].augment.crop_px)


class _Copies:
    """Stands for a `CropLoader`."""

    def __init__(self, side: int) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (side, side, 4), np.uint8)
        self._image, self._label = noise[..., :3], noise[..., 3]

    def load(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """The same crop for every row."""
        count = len(rows)
        return {
            "image": np.repeat(self._image[None], count, 0),
            "label": np.repeat(self._label[None], count, 0),
            "t": np.array([row.t for row in rows]),
            "crc32": np.zeros(count, np.int64),
            "bad": np.zeros(count, bool),
            "problem": np.array([""] * count, object),
        }


class Consumers:
    """The consumers of one node: a thread each, which look at a byte of every crop."""

    def __init__(self, ranks: Sequence[int], world: int) -> None:
        self._ranks, self._world = ranks, world
        self._node = ray.get_runtime_context().get_node_id()
        self._rows = dict.fromkeys(ranks, 0)
        self._problems: list[str] = []

    def start(self, parts: list[Any]) -> None:
        """Begins to take the batches of each consumer's iterator."""
        for rank, part in zip(self._ranks, parts, strict=True):
            threading.Thread(target=self._take, args=(rank, part), daemon=True).start()

    def seen(self) -> tuple[dict[int, int], list[str]]:
        """Rows of each consumer so far, and what was wrong."""
        return dict(self._rows), self._problems

    def _take(self, rank: int, part: Any) -> None:
        try:
            for number, batch in enumerate(stream.batches_of(part, ROWS)):
                first = (number * self._world + rank) * ROWS
                if batch["t"].tolist() != list(range(first, first + ROWS)):
                    self._problems.append(f"consumer {rank}: rows {batch['t']}, not {first}...")
                if batch["node"] != self._node:
                    self._problems.append(f"consumer {rank}: a crop of node {batch['node']}")
                batch["image"][:, 0, 0, 0].sum()
                self._rows[rank] += ROWS
        except Exception as error:
            self._problems.append(f"consumer {rank}: {error!r}")


def processes_of(session: int) -> dict[psutil.Process, str]:
    """The processes below one, by role."""
    found = {}
    for process in psutil.Process(session).children(recursive=True):
        try:
            words = " ".join([process.name(), *process.cmdline()])
        except psutil.Error:
            continue
        names = (role for word, role in ROLES.items() if word in words)
        found[process] = next(names, "driver" if process.pid == os.getpid() else "other")
    return found


def cpu_s(processes: dict[psutil.Process, str]) -> dict[psutil.Process, float]:
    found = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process] = times.user + times.system
    return found


def run_case(address: str, shards: str, consumers: int, steps: int, seconds: float) -> dict:
    """Measures one number of consumers and steps on a cluster that runs; 0 s: the start alone."""
    ray.init(address=address, log_to_driver=False)
    nodes = [each["NodeID"] for each in ray.nodes() if each["Resources"].get("CPU")]
    places = [nodes[rank * len(nodes) // consumers] for rank in range(consumers)]
    config = TrainMixConfig(
        run=RunConfig(name="scale", storage=tempfile.gettempdir()),
        data=DataConfig(
            shards=shards,
            num_loaders=LOADERS,
            loader_cpus=0.5,
            augment=AugmentConfig(crop_px=CROP_PX),
        ),
        train=TrainConfig(steps=steps, batch_size=consumers * ROWS),
        cluster=ClusterConfig(num_workers=consumers, cpus_per_worker=0.1),
    )
    plan = make_plan(config)
    actors = {}
    for node in nodes:
        ranks = [rank for rank, place in enumerate(places) if place == node]
        options = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}
        actors[node] = ray.remote(Consumers).options(**options).remote(ranks, consumers)
    seen = lambda: ray.get([actor.seen.remote() for actor in actors.values()])  # noqa: E731
    seen()
    began = time.perf_counter()
    remaining = RemainingRows(plan, 0, steps * config.train.batch_size)
    with mock.patch.object(stream, "BlockLoader", CopyLoader):
        parts = StreamDealer().configure({"train": remaining}, consumers, None, places)
    for node, actor in actors.items():
        mine = [part["train"] for part, place in zip(parts, places, strict=True) if place == node]
        actor.start.remote(mine)
    while not all(count for counts, _ in seen() for count in counts.values()):
        _check(seen())
        time.sleep(0.2)
    found = {"first_batch_s": time.perf_counter() - began}
    found["driver_mib"] = psutil.Process().memory_info().rss / 2**20
    if seconds:
        time.sleep(seconds / 2)  # All have started, and what was made ahead has been used.
        found |= _window(seen, seconds)
    _check(seen())
    # As Ray Train does: the next case must not find loaders of this one.
    ray.get(parts[0]["train"]._coord_actor.shutdown_executor.remote())
    return found


def _check(seen: list[tuple[dict[int, int], list[str]]]) -> None:
    problems = [problem for _, problems in seen for problem in problems]
    if problems:
        raise RuntimeError(f"{len(problems)} problems: {problems[:3]}")


def _window(seen: Any, seconds: float) -> dict[str, Any]:
    """Images/s, and the CPU of every process by role, for some seconds from now."""
    parent = os.getppid()
    processes = processes_of(parent)
    total = lambda: sum(sum(counts.values()) for counts, _ in seen())  # noqa: E731
    images, before, began = -total(), cpu_s(processes), time.perf_counter()
    time.sleep(seconds)
    after = cpu_s(processes)
    images += total()
    elapsed = time.perf_counter() - began
    if not images:
        raise RuntimeError(f"no image in {seconds} s: {seen()}")
    used: dict[str, list[float]] = defaultdict(list)
    held: dict[str, list[float]] = defaultdict(list)
    for process, role in processes.items():
        if process in before and process in after:
            used[role].append(1e3 * (after[process] - before[process]) / images)
            held[role].append(process.memory_info().rss / 2**20)
    central = {role: max(ms) for role, ms in used.items() if role not in LOADED}
    return {
        "images": images,
        "images_per_s": images / elapsed,
        "central_cpu_ms_per_image": max(central.values()),
        "busiest_process": max(central, key=lambda role: central[role]),
        "cpu_ms_per_image_by_role": {role: sum(ms) for role, ms in used.items()},
        "busiest_cpu_ms_per_image_by_role": {role: max(ms) for role, ms in used.items()},
        "processes_by_role": {role: len(ms) for role, ms in used.items()},
        "largest_rss_mib_by_role": {role: max(mib) for role, mib in held.items()},
    }


def in_own_process(address: str, *case: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.ingest_scale", "--case", address]
    command += map(str, case)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=420)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{case[1]} consumers, {case[2]} steps: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def start_nodes(count: int) -> Cluster:
    """A head without CPUs, and nodes for the consumers."""
    environment = {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    os.environ.update(environment)
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count):
        cluster.add_node(num_cpus=CPUS_PER_NODE, object_store_memory=STORE)
    return cluster


def measure(given: argparse.Namespace, shards: str) -> dict[str, Any]:
    """All cases, each number of consumers on a cluster of its own."""
    found: dict[str, Any] = {"cases": {}}
    consumers = sorted(map(int, given.consumers.split(",")))
    steps = sorted(map(int, given.steps.split(",")))
    rounds: dict[int, list[dict[str, Any]]] = {each: [] for each in steps}
    for number in consumers:
        cluster = start_nodes(-(-number // PER_NODE) if number > PER_NODE else min(2, number))
        try:
            if number == consumers[0]:
                in_own_process(cluster.address, shards, number, steps[0], 0)
                for _ in range(given.rounds):
                    for each in steps:
                        case = (cluster.address, shards, number, each, 0)
                        rounds[each].append(in_own_process(*case))
            case = (cluster.address, shards, number, steps[-1], given.seconds)
            found["cases"][number] = in_own_process(*case)
        finally:
            cluster.shutdown()
    for key in ("first_batch_s", "driver_mib"):
        values = {each: [row[key] for row in rows] for each, rows in rounds.items() if rows}
        found[key] = {each: statistics.median(some) for each, some in values.items()}
    last = found["cases"][consumers[-1]]
    found["images_per_s"] = {n: case["images_per_s"] for n, case in found["cases"].items()}
    found["central_cpu_ms_per_image"] = last["central_cpu_ms_per_image"]
    return found


def show(found: dict[str, Any]) -> bool:
    """Prints the tables, and which targets are reached; whether all are."""
    for number, case in found["cases"].items():
        print(f"\n{number} consumers: {case['images_per_s']:.0f} images/s, {case['images']} images")
        print(f"{'':14}{'processes':>10}{'CPU ms/image':>14}{'busiest':>10}{'RSS MiB':>10}")
        for role, count in sorted(case["processes_by_role"].items()):
            print(
                f"{role:14}{count:10}{case['cpu_ms_per_image_by_role'][role]:14.4f}"
                f"{case['busiest_cpu_ms_per_image_by_role'][role]:10.4f}"
                f"{case['largest_rss_mib_by_role'][role]:10.0f}"
            )
    print(f"\n{'steps':>10}{'first batch s':>15}{'driver MiB':>12}")
    for steps, seconds in found["first_batch_s"].items():
        print(f"{steps:10}{seconds:15.1f}{found['driver_mib'][steps]:12.0f}")
    results = [("central CPU ms an image", found["central_cpu_ms_per_image"], TARGET_CPU_MS)]
    if found["first_batch_s"]:
        first, memory = (list(found[key].values()) for key in ("first_batch_s", "driver_mib"))
        slower, larger = first[-1] / first[0] - 1, memory[-1] - memory[0]
        results += [("first batch, longest / shortest run - 1", slower, TARGET_SHARE)]
        results += [("driver MiB, longest - shortest run", larger, TARGET_MIB)]
    for words, value, target in results:
        reached = "reached" if value <= target else "MISSED"
        print(f"{words:42}{value:8.3f}  <= {target}  {reached}")
    return all(value <= target for _, value, target in results)


def main() -> int:
    """Makes shards, runs the cases, prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--consumers", default="2,8,64")
    parser.add_argument("--steps", default="1000,100000,10000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("runs/ingest_scale.json"))
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        address, shards, consumers, steps, seconds = given.case
        case = run_case(address, shards, int(consumers), int(steps), float(seconds))
        print(json.dumps(case), flush=True)
        os._exit(0)  # Ray's processes need no goodbye.
    require_token()
    with tempfile.TemporaryDirectory(prefix="ingest-scale-") as folder:
        write_shards(Path(folder), [plain_picture()], num_shards=1, per_shard=64)
        found = measure(given, folder)
    is_reached = show(found)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(not is_reached)


if __name__ == "__main__":
    sys.exit(main())
