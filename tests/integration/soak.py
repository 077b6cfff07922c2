"""A long training whose workers are killed again and again: nothing grows, and nothing changes.

    python -m tests.integration.soak [--steps 20000] [--kill_every 2000] [--out runs/soak.json]

A tiny LSeg trains on two simulated nodes (`ray.cluster_utils.Cluster`: each with a raylet and an
object store of its own), a worker on each, and one of them is killed every so many steps. A quarter
of the way to each kill and shortly before it, at the same ages of the workers each time, the
private memory, the descriptors and the threads of every process are read, by role. The first
interval is left out. Of the later readings the mean of the first half of the others is compared
with that of the second, and of the workers and loaders, which start anew, also the early readings
with the late ones:

    memory                       grows by less than 5 % in all, and by less than 5 % (or 16 MiB)
                                 in each role and within the life of workers and loaders
    descriptors and threads      grow by less than 5 % (or by one in a process) in each role
    order of the samples         is that of an undisturbed run, which is computed from the plan
    the node's disk              holds no local checkpoint at the end

Exit code 1 if a line does not hold.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
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
BATCH = 4
"""Images of a step: few, since steps and kills are counted here and not images."""
HISTORY = {"task_events_max_num_task_in_gcs": 1000}
"""Tasks that Ray's gcs remembers: 100,000 by default, a memory that fills for hours."""
OPEN_LOGS = "20"
"""Files that Ray's log monitor keeps open: 200 by default, those of some ten starts of workers."""
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
    "log_monitor": "log monitor",
    "plasma": "store",
}
FLAT = 0.05
LEAST = {"mib": 16, "descriptors": 1, "threads": 1}
"""Growth of a role that may have another cause than a leak."""
EPHEMERAL = ("worker", "loader")
"""Roles whose processes start anew after each kill."""
KINDS = ("mib", "descriptors", "threads")

NAMES = "names of threads"

Reading = dict[str, Counter[str]]
"""Of each of KINDS the sums by role; of NAMES how many threads are called so, as `role/name`."""


def read() -> Reading:
    """Reads every process that this one started, or that those started."""
    found: Reading = {kind: Counter() for kind in (*KINDS, NAMES)}
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join([process.name(), *process.cmdline()])
            role = next((role for word, role in ROLES.items() if word in words), "other")
            with process.oneshot():
                held = process.memory_full_info().uss >> 20
                one = {"mib": held, "descriptors": process.num_fds()}
                one["threads"] = process.num_threads()
                tasks = Path(f"/proc/{process.pid}/task").glob("*/comm")
                names = Counter(f"{role}/{task.read_text().strip()}" for task in tasks)
        except (psutil.Error, OSError):  # It, or a thread of it, ended meanwhile.
            continue
        found[NAMES] += names
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


def run(process: Process, steps: int, kill_every: int) -> list[tuple[Reading, Reading]]:
    """Kills a worker every so many steps until the run ends; the early and the late readings."""
    readings = []
    for number, step in enumerate(range(kill_every, steps, kill_every)):
        process.wait_for_step(step - kill_every * 3 // 4, timeout_s=7200)
        early = read()
        process.wait_for_step(step - kill_every // 10, timeout_s=7200)
        late = read()
        readings.append((early, late))
        process.wait_for_step(step, timeout_s=600)
        workers = train_workers()
        workers[number % len(workers)].kill()
        began, held = time.monotonic(), {k: {"all": late[k].total()} | late[k] for k in KINDS}
        print(f"killed a worker after step {process.step}; {json.dumps(held)}", flush=True)
        while not any(when > began + 5 for when, _ in process.steps[-1:]):
            if process.popen.poll() is not None or time.monotonic() - began > 300:
                raise RuntimeError("no step after the kill:\n" + "\n".join(process.lines[-40:]))
            time.sleep(0.1)
    if process.wait(timeout_s=7200):
        raise RuntimeError("\n".join(process.lines[-60:]))
    return readings


Means = dict[str, dict[str, tuple[float, float]]]
"""Of each kind and role the mean of some readings, and of others."""


def growth(readings: list[tuple[Reading, Reading]]) -> Means:
    """The first half of the late readings, and the second; the first interval is left out."""
    late = [pair[1] for pair in readings[1:]]
    half = len(late) // 2
    return means(late[:half], late[-half:])


def means(before: Sequence[Reading], after: Sequence[Reading]) -> Means:
    """The means of two lists of readings."""
    found: Means = {}
    for kind in KINDS:
        roles = sorted({role for reading in (*before, *after) for role in reading[kind]})
        found[kind] = {
            role: (
                sum(reading[kind][role] for reading in before) / len(before),
                sum(reading[kind][role] for reading in after) / len(after),
            )
            for role in roles
        }
    return found


def problems(found: Means, within: Means) -> list[str]:
    """What grew by more than it may.

    Args:
        found: From the first half of the intervals to the second.
        within: From early in an interval to late in it.
    """
    told = []
    before, after = (sum(pair[part] for pair in found["mib"].values()) for part in (0, 1))
    if after > before * (1 + FLAT):
        told.append(f"memory: {before:.0f} -> {after:.0f} MiB")
    for kind in KINDS:
        for role, (first, second) in found[kind].items():
            # Idle workers of Ray, which are "other", come and go.
            if role != "other" and second > max(first * (1 + FLAT), first + LEAST[kind]):
                told.append(f"{kind} of {role}: {first:.1f} -> {second:.1f}")
        for role in EPHEMERAL:
            first, second = within[kind].get(role, (0.0, 0.0))
            if second > max(first * (1 + FLAT), first + LEAST[kind]):
                told.append(f"{kind} of {role}, by its age: {first:.1f} -> {second:.1f}")
    return told


def soak(folder: Path, steps: int, kill_every: int) -> dict[str, Any]:
    """The whole of it, below a folder."""
    nodes = {"num_cpus": CPUS_PER_NODE, "object_store_memory": STORE}
    head = {**nodes, "include_dashboard": False, "_system_config": HISTORY}
    os.environ["RAY_LOG_MONITOR_MAX_OPEN_FILES"] = OPEN_LOGS
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**nodes)
    # Ray's own handler, which the nodes have set, would leave the training behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        ray.init(address=str(cluster.address), log_to_driver=False)
        shards = write_shards(folder)
        ray.shutdown()
        recipe = write_recipe(folder, shards, steps, max(kill_every // 8, 1), batch=BATCH)
        # Most of the time of so small a step would be the all-reduces of its batch norms.
        more = (
            "--train.log_every=10",
            "--train.sync_batchnorm=false",
            "--cluster.placement=SPREAD",
            "--cluster.max_failures=-1",
        )
        env = environment(RAY_ADDRESS=str(cluster.address))
        process = train(recipe, "soak", *more, env=env)
        try:
            readings = run(process, steps, kill_every)
        finally:
            process.popen.terminate()
            process.popen.wait(120)
    finally:
        cluster.shutdown()
    config = parse(TrainMixConfig, ["--config", str(recipe)])
    found = growth(readings)
    within = means([pair[0] for pair in readings[1:]], [pair[1] for pair in readings[1:]])
    told = problems(found, within)
    stored = folder / f"runs/soak/step_{steps:08d}/order.txt"
    if stored.read_text() != expected_order(config, steps):
        told.append("order: other samples came than in an undisturbed run")
    if left := list(Path(tempfile.gettempdir()).glob("lseg-checkpoint-soak-*")):
        told.append(f"disk: {left} left")
    more_threads = readings[-1][1][NAMES] - readings[1][1][NAMES]
    figures = {"means": found, "by_age": within, "problems": told, "threads": more_threads}
    return {"steps": steps, "kills": len(readings)} | figures


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
    print(f"threads that the last reading had more than the second: {dict(found['threads'])}")
    print("\n".join(found["problems"]) or "ok: flat, and in the order of an undisturbed run")
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
