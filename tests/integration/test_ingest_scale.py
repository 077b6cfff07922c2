"""The streams of two simulated nodes, as the benchmark of the ingest's machinery drives them."""

import json
import os
import subprocess
import sys

import pytest

from tests.integration.training_runs import REPOSITORY


# Slow: two raylets, and a driver for each case.
@pytest.mark.long
def test_no_crop_crosses_nodes_and_the_length_of_a_run_costs_nothing(tmp_path):
    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "tests.benchmarks.ingest_scale", "--consumers", "4"]
    command += ["--steps", "1000,10000000", "--rounds", "1", "--seconds", "5", "--out", str(out)]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=570
    )
    # Its consumers check the order of the rows, and on which node each block was made.
    assert done.returncode in (0, 1), done.stderr[-3000:]  # Four consumers reach no target.
    assert "Traceback" not in done.stderr
    found = json.loads(out.read_text())
    assert found["images_per_s"]["4"] > 0
    roles = found["cases"]["4"]["processes_by_role"]
    assert (roles["loader"], roles["coordinator"], roles["source"]) == (2, 2, 2)
    short, long = found["driver_mib"].values()
    assert long - short < 50
