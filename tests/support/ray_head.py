"""A real Ray head with a token, started by `ray start` as a cluster's pod or machine starts it."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def started_head(log_file: Path) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """The process of a cluster of one node, and the environment of its clients."""
    dashboard = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # A socket's short path.
        environment |= {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        starts = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
        words = ["start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
        words += ["--object-store-memory=100000000", f"--dashboard-port={dashboard}"]
        words += [
            f"--{name}-port={free_port()}"
            for name in ("ray-client-server", "metrics-export", "dashboard-agent-listen")
        ]
        with log_file.open("w") as log:
            process = subprocess.Popen(
                [RAY, *words, f"--port={free_port()}"], env=starts, stdout=log, stderr=log
            )
        try:
            wait_for(environment["RAY_ADDRESS"], process)
            yield process, environment
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
