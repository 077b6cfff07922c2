"""Damaged files of every kind end in what their readers promise, at a bounded cost."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz_targets import KINDS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # 200 files of each kind, in one process that loads PyTorch.
def test_damaged_files_end_in_what_the_readers_promise(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--kind", "all", "--count", "200"]
    command += ["--seed", "15", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for kind in KINDS:
        assert f"  {kind}: " in done.stdout
