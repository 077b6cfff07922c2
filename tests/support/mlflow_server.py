"""A real `mlflow server` as a process of its own, to be frozen, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

_START_S = 120.0


class MlflowServer:
    """`mlflow server` on loopback; always the same port and the same database.

    Args:
        folder: Holds `server.log`, and the database and the artifacts unless they are elsewhere.
        backend: URI of another database.
        artifacts: URI of another place for artifacts.
    """

    def __init__(self, folder: Path, backend: str = "", artifacts: str = "") -> None:
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder}/mlflow.db"
        self.artifacts = artifacts or str(folder / "artifacts")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def healthy(self) -> bool:
        """Whether it answers within two seconds."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def start(self) -> None:
        """Starts it, if it does not run, and waits until it answers."""
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.backend]
        command += ["--artifacts-destination", self.artifacts]
        env = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.healthy, _START_S)

    def freeze(self) -> None:
        """Stops all its processes where they are (SIGSTOP): connections open, no answers."""
        for process in self._processes():
            process.send_signal(signal.SIGSTOP)
        # Freezing the wrong process would make every test pass for nothing.
        assert not self.healthy()

    def thaw(self) -> None:
        """Lets them go on."""
        for process in self._processes():
            process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills it (SIGKILL), if it runs; connections are refused from then on."""
        if self.process is None:
            return
        processes = self._processes()
        for process in processes:
            process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=10)
        self.process = None
        assert not self.healthy()

    def _processes(self) -> list[psutil.Process]:
        """The command and all it started: the one that listens is a grandchild."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]


def wait_until(check: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)
