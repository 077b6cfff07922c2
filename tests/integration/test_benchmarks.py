"""The smallest form of benchmarks that nothing else runs, and what the soak makes of readings."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.benchmarks import serve_load
from tests.integration import soak
from tests.integration.training_runs import REPOSITORY


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a module of the tests as its own command."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-W", "ignore", "-m", *words]
    return subprocess.run(line, cwd=REPOSITORY, env=variables, capture_output=True, text=True)


# Slow: two processes that load torch and timm, and a text tower.
@pytest.mark.long
def test_the_benchmark_of_a_gpu_runs_each_kind_of_case_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    done = command("tests.benchmarks.gpu", "--smallest", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["missing"] == []
    rows = {f"{row['group']}: {row['case']}": row for row in found["rows"]}
    for name in ("tiny: fp32, 5 labels", "tiny: habits, 5 labels"):
        assert rows[name]["images_per_s"] > 0
    assert rows["tiny: largest batch"]["batch"] == 2
    assert 0 < rows["tiny: evaluation"]["whole_s"] < rows["tiny: evaluation"]["multi_scale_s"]
    assert rows["regularizer: depth 4, first bias -"]["reference_loss"] > 0


# Slow: steps of the demo's network, and what loads it.
@pytest.mark.long
def test_the_benchmark_of_checkpoints_compares_its_three_ways():
    done = command("tests.benchmarks.checkpoint_step", "--rounds", "1", "--steps", "3")
    assert done.returncode in (0, 1), done.stderr[-3000:]  # Of so few steps nothing is concluded.
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0]: float(line[1]) > 0 for line in lines[1:3]} == {"none": True, "threads": True}
    assert lines[3][:3] == ["in", "the", "step"]


def test_a_load_fails_where_requests_are_lost_or_the_memory_grows():
    def load(peak_mib: float, *models: str, off: float = 0.0) -> serve_load.Load:
        answers = [serve_load.Answered(0.1, model, off) for model in models]
        return serve_load.Load(answers, peak_mib=peak_mib)

    steady, changing = load(900, "one"), load(1000, "one", "two")
    assert serve_load.faults(steady, changing, 1000) == []
    assert serve_load.faults(steady, changing, 950) == ["changing: 1000 MiB: must be at most 950"]
    (fault,) = serve_load.faults(load(1, "one", off=2e-4), changing, 1000)
    assert fault.startswith("steady: requests were lost")
    (fault,) = serve_load.faults(steady, load(1, "one"), 1000)
    assert "never answered" in fault


def reading(mib: int, descriptors: int = 20) -> soak.Reading:
    return {
        "mib": Counter(worker=mib, raylet=100),
        "descriptors": Counter(worker=descriptors, other=mib),
        "threads": Counter(worker=9),
    }


def test_the_soak_compares_the_later_readings_with_the_earlier_ones():
    def told(*readings: soak.Reading) -> list[str]:
        found = soak.growth([(each, each) for each in readings])
        return soak.problems(found, soak.means(readings, readings))

    assert told(*(reading(300) for _ in range(5))) == []
    assert told(reading(900), reading(300), reading(310), reading(305), reading(310)) == []
    assert told(reading(1), reading(300), reading(300), reading(330), reading(340)) == [
        "memory: 400 -> 435 MiB",
        "mib of worker: 300.0 -> 335.0",
    ]
    assert told(reading(1), reading(300), reading(300, 30), reading(300, 40)) == [
        "descriptors of worker: 20.0 -> 40.0"
    ]


def test_the_soak_compares_workers_with_younger_ones():
    found = soak.growth([(reading(300), reading(300))] * 5)
    early, late = [reading(300)] * 3, [reading(330, 23)] * 3
    assert soak.problems(found, soak.means(early, late)) == [
        "mib of worker, by its age: 300.0 -> 330.0",
        "descriptors of worker, by its age: 20.0 -> 23.0",
    ]
    assert soak.problems(found, soak.means(early, [reading(314, 21)] * 3)) == []
