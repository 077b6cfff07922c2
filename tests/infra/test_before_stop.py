"""`infra/before_stop.py` against a real Ray: a job writes its checkpoint before its pods end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_head import RAY, started_head

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "before_stop.py"
# What a training does at SIGTERM, in short; its worker has the name of Ray Train's.
JOB = """
import pathlib, signal, sys, time
import ray

@ray.remote(num_cpus=0)
class RayTrainWorker:
    def process(self):
        return True

ray.init(log_to_driver=False)
worker = RayTrainWorker.remote()
ray.get(worker.process.remote())

def stop(*_):
    time.sleep(2)
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[2]).touch()
time.sleep(600)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    with started_head(tmp_path_factory.mktemp("head") / "head.log") as (_, environment):
        yield environment


def call(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_job(environment: dict[str, str], folder: Path) -> tuple[Path, Path]:
    """A job that is at work: the file that it writes at its end, and its script."""
    script, checkpoint, at_work = (folder / name for name in ("job.py", "checkpoint", "at_work"))
    script.write_text(JOB)
    variables = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'
    command = [RAY, "job", "submit", "--no-wait", "--runtime-env-json", variables, "--"]
    command += [sys.executable, script, checkpoint, at_work]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    give_up = time.monotonic() + 120
    while not at_work.exists():
        assert time.monotonic() < give_up
        time.sleep(0.2)
    return checkpoint, script


def test_the_pods_of_a_job_stay_until_it_has_written_its_checkpoint(environment, tmp_path):
    checkpoint, _ = start_job(environment, tmp_path)
    # The pod of a worker: it announces its end, and stays as long as the training is on it.
    command = [sys.executable, str(SCRIPT), "leave", "--notice_s", "90", "--wait_s", "100"]
    leaves = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert leaves.stdout
    line = leaves.stdout.readline()
    assert "announced that it goes in 90 s" in line
    assert leaves.poll() is None
    # The pod of the head: it stops the job, and stays until the job has ended.
    address = ("--address", environment["RAY_ADDRESS"])
    assert "asked to stop" in call(environment, "stop_jobs", *address)
    assert checkpoint.read_text() == "checkpoint"
    assert leaves.wait(30) == 0
    assert call(environment, "stop_jobs", *address) == ""  # Nothing runs.


def test_leaving_a_node_without_ray_is_no_error(environment, tmp_path):
    assert call(environment | {"RAY_TMPDIR": str(tmp_path)}, "leave") == ""
