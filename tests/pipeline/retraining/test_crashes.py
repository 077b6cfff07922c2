"""Calls that are killed (SIGKILL) at each point, and calls at the same time, on a real server."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline.retraining.world import (
    SlowWorld,
    World,
    run_and_die,
    run_and_tell,
    run_as_machine,
)
from tests.support.mlflow_server import MlflowServer, wait_until

# A server, and a process for each point that is killed in the middle.
pytestmark = pytest.mark.slow

# A clean process that has loaded what the calls need, to fork from: no thread, no connection.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.pipeline.retraining.world"])

BEFORE_THE_ALIAS = [
    ("StateFile", "write", "before", "planned"),
    ("StateFile", "write", "after", "planned"),
    ("World", "train", "after", ""),
    ("StateFile", "write", "after", "trained"),
    ("Registry", "register", "after", "CHECKPOINT"),
    ("StateFile", "write", "before", "registered"),
    ("StateFile", "write", "after", "registered"),
    ("StateFile", "write", "after", "1"),  # One of the two is evaluated.
    ("StateFile", "write", "before", "evaluated"),
    ("StateFile", "write", "after", "evaluated"),
    ("StateFile", "write", "after", "decided"),
    ("Registry", "set_tags", "after", "replaced"),
    ("Registry", "set_alias", "before", "champion"),
]
AFTER_THE_ALIAS = [
    ("Registry", "set_alias", "after", "champion"),
    ("StateFile", "write", "before", "promoted"),
    ("StateFile", "write", "after", "promoted"),
    ("Registry", "remove_alias", "after", "candidate"),
    ("DecisionRecord", "tag_version", "after", "retrain.data"),
    ("DecisionRecord", "log", "before", "kind"),
    ("StateFile", "write", "before", "finished"),
]
"""Points of a call, in order."""


def die(world: World, *point: str) -> None:
    """A call that is killed."""
    process = CONTEXT.Process(target=run_and_die, args=(world, *point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"it was not killed at {point}"


def test_each_call_after_a_killed_one_goes_on(make_world, mlflow_server: MlflowServer):
    """Each call is killed a little later than the one before: it must have got there."""
    world = make_world(mlflow_server.uri)
    world.arrive("new", 0.6, 0.6, 0.6)
    for point in BEFORE_THE_ALIAS:
        die(world, *point)
        assert world.champion() == "1", point
    for point in AFTER_THE_ALIAS:
        die(world, *point)
        assert world.champion() == "2", point
    check_one_promotion(world)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        ("World", "train", "after", ""),
        ("Registry", "register", "after", "CHECKPOINT"),
        ("Registry", "set_alias", "after", "champion"),
    ],
    ids="-".join,
)
def test_one_killed_call(make_world, mlflow_server: MlflowServer, point):
    """Where something was done in the world, and the state does not know it yet."""
    world = make_world(mlflow_server.uri)
    world.arrive("new", 0.6, 0.6, 0.6)
    die(world, *point)
    check_one_promotion(world)


def check_one_promotion(world: World) -> None:
    """The next call leaves all as it would be without a crash: one training, version, decision."""
    result = world.call()
    assert (result.kind, world.champion()) == ("promoted", "2")
    assert len({line.split()[1] for line in world.done("train")}) == 1
    assert len(world.models.versions()) == 2
    assert [entry["kind"] for entry in world.decisions()] == ["decision", "decision"]
    assert world.decisions()[-1]["attempt"]["decision"]["promote"] is True
    tags = world.tags("2")
    assert (tags["replaced"], tags["retrain.decision"]) == ("1", "promoted")
    assert world.models.alias("candidate") is None
    assert {e.path.split("/")[0] for e in world.storage.list()} == {"decisions", "state.json"}
    assert world.call().kind == "unchanged"


@pytest.mark.long
def test_a_rollback_after_a_killed_promotion_stays(make_world, mlflow_server):
    world = make_world(mlflow_server.uri)
    world.arrive("new", 0.6, 0.6, 0.6)
    die(world, "Registry", "set_alias", "after", "champion")
    assert world.retraining().rollback().kind == "rolled back"
    result = world.call()
    assert (result.kind, world.champion()) == ("rejected", "1")
    assert "it was promoted, and rolled back" in result.text
    assert world.call().kind == "tried"


@pytest.mark.long
def test_a_promotion_that_is_undone_by_hand_stays_undone(make_world, mlflow_server):
    world = make_world(mlflow_server.uri)
    world.arrive("new", 0.6, 0.6, 0.6)
    die(world, "StateFile", "write", "after", "promoted")
    assert world.champion() == "2"
    world.client.set_registered_model_alias(world.name, "champion", "1")  # As the UI does.
    result = world.call()
    assert (result.kind, world.champion()) == ("rejected", "1")
    assert world.call().kind == "tried"


@pytest.mark.long
def test_a_killed_rejection_leaves_the_champion(make_world, mlflow_server):
    world = make_world(mlflow_server.uri)
    world.arrive("new", 0.4, 0.4, 0.4)
    for when in ("before", "after"):
        die(world, "StateFile", "write", when, "decided")
        assert world.champion() == "1"
    assert world.call().kind == "rejected"
    assert world.champion() == "1"
    assert world.call().kind == "tried"


def started(world: World) -> list[str]:
    return world.done("begin")


def test_two_at_once(make_world, mlflow_server):
    world = make_world(mlflow_server.uri, SlowWorld)
    world.arrive("new", 0.6, 0.6, 0.6)
    results = CONTEXT.Queue()
    callers = [CONTEXT.Process(target=run_and_tell, args=(world, results)) for _ in range(2)]
    for caller in callers:
        caller.start()
    loser, text = results.get(timeout=60)
    wait_until(lambda: started(world))
    (winner,) = {caller.pid for caller in callers} - {loser}
    assert text.startswith("75 ")
    assert f"locked by process {winner} on " in text
    (world.folder / "go").touch()
    assert results.get(timeout=60) == (winner, "promoted")
    for caller in callers:
        caller.join()
    assert started(world) == [f"begin {winner}"]
    assert len(world.models.versions()) == 2


def test_a_silent_holder_loses_its_lock_and_promotes_nothing(make_world, mlflow_server):
    """Two machines: one freezes in its training, the other takes over, the first one thaws."""
    world = make_world(mlflow_server.uri, SlowWorld)
    world.arrive("new", 0.6, 0.6, 0.6)
    results = CONTEXT.Queue()
    frozen = CONTEXT.Process(target=run_as_machine, args=(world, "first", results))
    frozen.start()
    wait_until(lambda: started(world))
    stop(frozen, signal.SIGSTOP)
    try:
        began = time.monotonic()
        other = CONTEXT.Process(target=run_as_machine, args=(world, "second", results))
        other.start()
        wait_until(lambda: len(started(world)) == 2)
        assert time.monotonic() - began >= world.config.lock.expires_s
        (world.folder / "go").touch()
        assert results.get(timeout=60) == (other.pid, "promoted")
        other.join()
    finally:
        stop(frozen, signal.SIGCONT)
    pid, text = results.get(timeout=60)
    assert pid == frozen.pid
    assert text.startswith("75 ")
    assert "another one has taken over: nothing was promoted here" in text
    frozen.join()
    assert world.champion() == "2"
    assert len(world.models.versions()) == 2
    assert world.attempt().phase == "finished"


@pytest.mark.long
def test_the_lock_of_a_machine_that_is_gone_is_taken_over(make_world, mlflow_server):
    world = make_world(mlflow_server.uri, SlowWorld)
    world.arrive("new", 0.6, 0.6, 0.6)
    results = CONTEXT.Queue()
    gone = CONTEXT.Process(target=run_as_machine, args=(world, "gone", results))
    gone.start()
    wait_until(lambda: started(world))
    stop(gone, signal.SIGKILL)
    gone.join()
    assert Path(world.storage.uri, "retrain.lock").is_file()
    (world.folder / "go").touch()
    assert world.call().kind == "promoted"


def stop(process, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)
