"""A sweep whose process is killed (SIGKILL) goes on where it was, by the same command."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.training.config import RunConfig
from pipeline.training.saving import snapshot
from tests.integration.training_runs import REPOSITORY, Process
from tests.pipeline.sweep.test_sweeps import recipe_text


# Slow: two starts of a Ray of its own, which is what is killed.
@pytest.mark.long
def test_a_killed_sweep_goes_on_where_it_was(mini_shards, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_text(mini_shards))
    sweep = {
        "name": "killed",
        "base": str(tmp_path / "recipe.yaml"),
        "storage": str(tmp_path),
        "trials": [
            {"train.lr": 0.01},
            {"train.lr": 0.02, "train.steps": 80, "train.checkpoint_every": 10},
        ],
        "overrides": {"train.validate_every": 0},
        "metric": "val/pixel_accuracy",
        "max_concurrent": 1,
        "tracking": {"uri": mini_shards.tracking_uri},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    job = str(REPOSITORY / "jobs" / "sweep.py")
    command = [sys.executable, job, "--config", str(tmp_path / "sweep.yaml")]

    first = Process.start(command)
    wait_for(first, lambda: newest_step(tmp_path / "killed"))
    kill_with_children(first)
    done = newest_step(tmp_path / "killed")
    (finished,) = (tmp_path / "killed" / "results").glob("0.01-*.json")
    before = finished.read_text(), finished.stat().st_mtime_ns
    assert json.loads(before[0])["status"] == "finished"
    assert 10 <= done < 80

    second = Process.start(command)
    assert second.wait() == 0, "\n".join(second.lines[-40:])
    assert (finished.read_text(), finished.stat().st_mtime_ns) == before
    assert second.steps[0][1] > done
    assert second.step == 80
    assert any("1 trials, 1 side by side" in line for line in second.lines)
    report = json.loads((tmp_path / "killed" / "report" / "comparison.json").read_text())
    assert sorted(trial["status"] for trial in report["trials"]) == ["finished", "finished"]
    assert any("viewStateShareKey=sweep-" in line for line in second.lines)


def newest_step(root: Path) -> int:
    """Of the second trial's complete checkpoints; 0 while there is none."""
    runs = [RunConfig(name=run.name, storage=str(root)) for run in root.glob("*-0.02-*")]
    return max(map(snapshot.latest_step, runs), default=0)


def wait_for(process: Process, check, timeout_s: float = 300.0):
    """Waits until `check` finds something, while the process runs."""
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        alive = process.popen.poll() is None and time.monotonic() < deadline
        assert alive, "\n".join(process.lines[-40:])
        time.sleep(0.1)
    return found


def kill_with_children(process: Process) -> None:
    """SIGKILL to the driver; what Ray leaves of its own is ended too, as with the machine."""
    children = psutil.Process(process.popen.pid).children(recursive=True)
    process.popen.kill()
    process.popen.wait()
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=60)
