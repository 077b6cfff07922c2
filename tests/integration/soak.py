"""A long training whose workers are killed again and again: nothing grows, and nothing changes.

    python -m tests.integration.soak [--steps 20000] [--kill_every 2000] [--out runs/soak.json]

A tiny LSeg trains on two simulated nodes (`ray.cluster_utils.Cluster`: each with a raylet and an
object store of its own), a worker on each, and one of them is killed every so many steps. Shortly
before each kill, at the same age of the workers each time, the private memory, the descriptors and
the threads of every process are read, by role. Of the readings the first is left out, and the mean
of the first half of the others is compared with that of the second:

    memory                       grows by less than 5 % in all
    descriptors and threads      grow by less than 5 % (or by one in a process) in each role
    order of the samples         is that of an undisturbed run, which is computed from the plan
    the node's disk              holds no local checkpoint at the end

Exit code 1 if a line does not hold.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
from isal.isal_zlib import crc32
from ray.cluster_utils import Cluster

from jobs.cli import parse
from jobs.local_ray import require_token
from pipeline.data.shards.format import read_sample
from pipeline.storage.open import open_storage
from pipeline.training.config import TrainMixConfig
from pipeline.training.plan import make_plan
from pipeline.training.state import order
from tests.integration.training_runs import (
    Process,
    environment,
    train,
    write_recipe,
    write_shards,
)
from tests.support.train_workers import train_workers

CPUS_PER_NODE = 3
STORE = 300 << 20
ROLES = {
    "RayTrainWorker": "worker",
    "MapWorker": "loader",
    "SplitCoordinator": "coordinator",
    "BlockNumbers": "source",
    "TrainController": "controller",
    "train_mix": "driver",
    "StopSignal": "stop actor",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "plasma": "store",
}
FLAT = 0.05
KINDS = ("mib", "descriptors", "threads")

Reading = dict[str, Counter[str]]
"""Of each of KINDS the sums by role."""


def read() -> Reading:
    """Reads every process that this one started, or that those started."""
    found: Reading = {kind: Counter() for kind in KINDS}
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join([process.name(), *process.cmdline()])
            role = next((role for word, role in ROLES.items() if word in words), "other")
            with process.oneshot():
                held = process.memory_full_info().uss >> 20
                one = {"mib": held, "descriptors": process.num_fds()}
                one["threads"] = process.num_threads()
        except psutil.Error:  # It ended meanwhile.
            continue
        for kind, value in one.items():
            found[kind][role] += value
    return found


def expected_order(config: TrainMixConfig, steps: int) -> str:
    """The content of order.txt of a run that nothing disturbs, from plan and shards alone."""
    plan = make_plan(config)
    stream, storage = order.StreamOrder(plan.mixture, plan.corpus), open_storage(config.data.shards)
    checksums = []
    for name in plan.mixture.datasets:
        manifest, mine = plan.corpus.manifests[name], []
        for shard in manifest.shards:
            for record in shard.samples:
                sample = read_sample(storage, name, manifest.split, shard, record)
                mine.append(crc32(sample.png, crc32(sample.jpeg)))
        checksums.append(mine)
    lines = []
    for step in range(steps):
        rows = stream.rows(step)
        digest = stream.digest(rows, [checksums[row.dataset][row.sample] for row in rows])
        lines.append(f"{digest % 2**64:016x}\n")
    return "".join(lines)


def run(process: Process, steps: int, kill_every: int) -> list[Reading]:
    """Kills a worker every so many steps until the run ends."""
    readings = []
    for number, step in enumerate(range(kill_every, steps, kill_every)):
        process.wait_for_step(step - kill_every // 10, timeout_s=7200)
        readings.append(read())
        process.wait_for_step(step, timeout_s=600)
        workers = train_workers()
        workers[number % len(workers)].kill()
        began, held = time.monotonic(), {k: {"all": c.total()} | c for k, c in readings[-1].items()}
        print(f"killed a worker after step {process.step}; {json.dumps(held)}", flush=True)
        while not any(when > began + 5 for when, _ in process.steps[-1:]):
            if process.popen.poll() is not None or time.monotonic() - began > 300:
                raise RuntimeError("no step after the kill:\n" + "\n".join(process.lines[-40:]))
            time.sleep(0.1)
    if process.wait(timeout_s=7200):
        raise RuntimeError("\n".join(process.lines[-60:]))
    return readings


def growth(readings: list[Reading]) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each kind and role the mean of the first half of the readings, and of the second."""
    later = readings[1:]
    half = len(later) // 2
    parts = later[:half], later[-half:]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for kind in KINDS:
        roles = sorted({role for reading in later for role in reading[kind]})
        means = {
            role: [sum(r[kind][role] for r in part) / len(part) for part in parts] for role in roles
        }
        found[kind] = {role: (before, after) for role, (before, after) in means.items()}
    return found


def problems(found: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    """What grew by more than it may."""
    told = []
    before, after = (sum(pair[part] for pair in found["mib"].values()) for part in (0, 1))
    if after > before * (1 + FLAT):
        told.append(f"memory: {before:.0f} -> {after:.0f} MiB")
    for kind in KINDS[1:]:
        for role, (first, second) in found[kind].items():
            # Idle workers of Ray, which are "other", come and go.
            if role != "other" and second > max(first * (1 + FLAT), first + 1):
                told.append(f"{kind} of {role}: {first:.1f} -> {second:.1f}")
    return told


def soak(folder: Path, steps: int, kill_every: int) -> dict[str, Any]:
    """The whole of it, below a folder."""
    nodes = {"num_cpus": CPUS_PER_NODE, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    try:
        ray.init(address=str(cluster.address), log_to_driver=False)
        shards = write_shards(folder)
        ray.shutdown()
        recipe = write_recipe(folder, shards, steps, max(kill_every // 8, 1))
        more = ("--train.log_every=5", "--cluster.placement=SPREAD", "--cluster.max_failures=-1")
        env = environment(RAY_ADDRESS=str(cluster.address))
        readings = run(train(recipe, "soak", *more, env=env), steps, kill_every)
    finally:
        cluster.shutdown()
    config = parse(TrainMixConfig, ["--config", str(recipe)])
    found = growth(readings)
    told = problems(found)
    stored = folder / f"runs/soak/step_{steps:08d}/order.txt"
    if stored.read_text() != expected_order(config, steps):
        told.append("order: other samples came than in an undisturbed run")
    if left := list(Path(tempfile.gettempdir()).glob("lseg-checkpoint-soak-*")):
        told.append(f"disk: {left} left")
    return {"steps": steps, "kills": len(readings), "means": found, "problems": told}


def main() -> int:
    """Runs it and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--kill_every", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"))
    given = parser.parse_args()
    if (given.steps - 1) // given.kill_every < 3:
        parser.error("at least three kills are needed to compare readings")
    require_token()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(Path(folder), given.steps, given.kill_every)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    for kind, roles in found["means"].items():
        for role, (before, after) in roles.items():
            print(f"{kind:12} {role:12} {before:10.1f} -> {after:10.1f}")
    print("\n".join(found["problems"]) or "ok: flat, and in the order of an undisturbed run")
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
