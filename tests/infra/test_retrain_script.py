"""`infra/retrain.sh` against a real Ray: what it makes of each end that a job can come to."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
JOB = """
import sys, time
print("at work", flush=True)
if sys.argv[1] == "sleep":
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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
    dashboard = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # A socket's short path.
        environment |= {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "LSEG_RAY": str(RAY),
        }
        starts = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
        words = ["start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
        words += ["--object-store-memory=100000000", f"--dashboard-port={dashboard}"]
        words += [
            f"--{name}-port={free_port()}"
            for name in ("ray-client-server", "metrics-export", "dashboard-agent-listen")
        ]
        with (checkout.parent / "head.log").open("w") as log:
            process = subprocess.Popen(
                [RAY, *words, f"--port={free_port()}"], env=starts, stdout=log, stderr=log
            )
        try:
            wait_for(environment["RAY_ADDRESS"], process)
            yield Head(process, environment, checkout)
        finally:
            end(process)


def wait_for(address: str, process: subprocess.Popen) -> None:
    """Waits until the dashboard answers; that it asks for a token is an answer."""
    give_up = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < give_up
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)


def end(process: subprocess.Popen) -> None:
    """Ends a node with all processes that it started."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        psutil.wait_procs(below, timeout=20)
        for each in below:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(30)


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
