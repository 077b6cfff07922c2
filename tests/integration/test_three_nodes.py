"""Three Ray nodes with a worker on each: one is killed, one comes, one is announced to leave.

    THREE_NODES=1 python -m pytest -s tests/integration/test_three_nodes.py

The nodes are processes of this machine (`ray.cluster_utils.Cluster`), each with a raylet and an
object store of its own; the training is `jobs/train_mix.py` in a process that connects to them.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.integration.training_runs import (
    BATCH,
    Process,
    compare,
    environment,
    write_recipe,
)
from tests.support.mini_shards import MiniShards

pytestmark = [
    # Opt-in: three Rays beside that of the tests, and GCS takes half a minute to miss a node.
    pytest.mark.skipif("THREE_NODES" not in os.environ, reason="set THREE_NODES=1 to run it"),
    pytest.mark.long,
]

STEPS, EVERY = 120, 10
CPUS_PER_NODE = 3  # Of which a worker takes two: loaders need a place, a second worker none.
assert BATCH % 6 == 0  # 3, 2 or 1 workers.


class Nodes:
    """A head and two more nodes."""

    def __init__(self) -> None:
        self._args: dict[str, Any] = {"num_cpus": CPUS_PER_NODE, "object_store_memory": 200 << 20}
        head = {**self._args, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.others = [self.cluster.add_node(**self._args) for _ in range(2)]

    def kill_last(self) -> None:
        """Kills all processes of the newest node but the training's, which notice by themselves."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)

    def add(self) -> None:
        """Adds a node."""
        self.others.append(self.cluster.add_node(**self._args))

    def announce(self, seconds: int) -> None:
        """Announces the end of the newest node, as an autoscaler or a spot instance does."""
        command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
        command += ["--address", self.address, "--node-id", self.others[-1].node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, env=environment(), capture_output=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


def train(cluster: Nodes, recipe: Path, name: str, *arguments: str) -> Process:
    """A run with a worker on each node."""
    command = [sys.executable, "jobs/train_mix.py", "--config", str(recipe), "--run.name", name]
    command += ["--cluster.num_workers=3", "--cluster.cpus_per_worker=2"]
    command += ["--cluster.placement=SPREAD", "--cluster.min_workers=1"]
    command += arguments
    return Process.start(command, environment(RAY_ADDRESS=cluster.address))


def workers(process: Process) -> list[tuple[int, int]]:
    """(workers, first step) of each start of the workers."""
    found = (re.search(r"(\d+) workers? from step (\d+)", line) for line in process.lines)
    return [(int(match[1]), int(match[2])) for match in found if match]


def wait_for(process: Process, condition: Callable[[], bool], timeout_s: float = 240) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        if process.popen.poll() is not None or time.monotonic() - began > timeout_s:
            raise RuntimeError("it did not happen:\n" + "\n".join(process.lines[-60:]))
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def recipe(cluster: Nodes, mini_shards: MiniShards, tmp_path_factory) -> Path:
    """Of all runs; one of the name `whole` is there, undisturbed."""
    folder = tmp_path_factory.mktemp("three")
    recipe = write_recipe(folder, mini_shards.folder, STEPS, EVERY, "fp64")  # See `same_weights`.
    process = train(cluster, recipe, "whole")
    assert process.wait() == 0, "\n".join(process.lines[-60:])
    assert workers(process) == [(3, 0)]
    return recipe


def test_a_killed_node_costs_little_and_another_is_made_use_of(cluster: Nodes, recipe: Path):
    process = train(cluster, recipe, "killed", "--cluster.resize_every_s=5")
    process.wait_for_step(STEPS // 3)
    before, began = process.step, time.monotonic()
    cluster.kill_last()
    wait_for(process, lambda: len(workers(process)) > 1)
    wait_for(process, lambda: process.steps[-1][0] > began and process.step <= before + 1)
    (_, (left, first)), seconds = workers(process)[:2], time.monotonic() - began
    print(
        f"killed: a node after step {before}; went on with {left} workers from step {first}, "
        f"{before - first} steps lost (checkpoints every {EVERY}), {seconds:.1f} s to the next step"
    )
    assert left == 2
    assert before - first <= EVERY
    cluster.add()
    seconds = wait_for(process, lambda: workers(process)[-1][0] == 3)
    print(f"killed: {seconds:.1f} s from a new node to 3 workers, at {workers(process)[-1][1]}")
    assert process.wait() == 0, "\n".join(process.lines[-60:])
    found = compare(recipe.parent / "runs", "whole", "killed", STEPS)
    print(
        f"killed: same order {found.same_order}, weights differ by {found.relative:.1e} of a "
        f"tensor's norm, by {found.overall:.1e} of that of all"
    )
    assert found.same_order
    assert found.relative < 1e-6


def test_a_node_that_is_announced_to_leave_calls_for_a_checkpoint(cluster: Nodes, recipe: Path):
    process = train(
        cluster,
        recipe,
        "leaving",
        f"--train.checkpoint_every={STEPS}",
        "--cluster.preemption_every=3",
    )
    process.wait_for_step(STEPS // 4)
    before, began = process.step, time.monotonic()
    cluster.announce(30)
    folder = recipe.parent / "runs/leaving"
    seconds = wait_for(process, lambda: any(folder.glob("step_*/trainer.pt")))
    (stored,) = (int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))
    print(f"leaving: told after step {before}, checkpoint after step {stored}, {seconds:.1f} s")
    assert before <= stored < STEPS
    wait_for(process, lambda: len(workers(process)) > 1 or process.step == STEPS)
    print(f"leaving: then {workers(process)}, {time.monotonic() - began:.1f} s after the notice")
    # They went on from the urgent checkpoint: nothing that was trained after it is lost.
    assert workers(process)[-1][1] == stored
    assert process.wait() == 0, "\n".join(process.lines[-60:])
    assert any("is about to leave: checkpoint" in line for line in process.lines)
    found = compare(recipe.parent / "runs", "whole", "leaving", STEPS)
    print(f"leaving: same order {found.same_order}, weights differ by {found.relative:.1e}")
    assert found.same_order
    assert found.relative < 1e-6
