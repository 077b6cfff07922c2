"""`infra/retrain.sh` against a real Ray: what it makes of each end that a job can come to."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ray_head import RAY, end, started_head

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import sys, time
print("at work", flush=True)
if sys.argv[1] == "sleep":
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""

pytestmark = pytest.mark.slow


@dataclass
class Head:
    """A cluster of one node, and a checkout whose `jobs/retrain.py` does what it is told."""

    process: subprocess.Popen
    environment: dict[str, str]
    checkout: Path

    def call(self, argument: str) -> subprocess.Popen:
        """Starts the script, and returns when its job is at work."""
        self.log = self.checkout.with_name(f"{argument}.log")
        with self.log.open("w") as log:
            script = subprocess.Popen(
                [self.checkout / "infra" / "retrain.sh"],
                env=self.environment | {"LSEG_RETRAIN_ARGS": argument},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        give_up = time.monotonic() + 120
        while "\nat work" not in self.log.read_text():
            assert script.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            time.sleep(0.2)
        return script

    def job(self) -> str:
        (name,) = set(re.findall(r"Job '(raysubmit_\w+)' submitted", self.log.read_text()))
        return name


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    checkout = tmp_path_factory.mktemp("scheduled") / "checkout"
    for name in ("infra", "jobs"):
        (checkout / name).mkdir(parents=True)
    shutil.copy(ROOT / "infra" / "retrain.sh", checkout / "infra")
    (checkout / "jobs" / "retrain.py").write_text(JOB)
    with started_head(checkout.parent / "head.log") as (process, environment):
        yield Head(process, environment | {"LSEG_RAY": str(RAY)}, checkout)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_exit_code_is_the_jobs(head, code):
    assert head.call(str(code)).wait(120) == code, head.log.read_text()


def test_a_stopped_job_is_no_success(head):
    script = head.call("sleep")
    stop = [RAY, "job", "stop", "--no-wait", head.job()]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True)
    assert script.wait(180) == 143, head.log.read_text()


def test_a_head_that_goes_away_is_no_success(head):
    script = head.call("sleep")
    end(head.process)
    assert script.wait(180) == 69, head.log.read_text()
