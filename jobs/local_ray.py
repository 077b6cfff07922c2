"""A Ray of this process's own: started anew where the machine is busy, and locked by a token.

Ray listens on all addresses of the machine, whatever its settings, and runs what anybody sends who
reaches it. So it answers only to those who know a token: the processes that this one starts, which
inherit it with their environment. No file holds it.
"""

import atexit
import contextlib
import json
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_ATTEMPTS = 3
_PAUSE_S = 5.0
_TARGETS = "lseg-metrics-{}.json"
"""Name of a file in Ray's folder, by process, in the form of Prometheus's service discovery."""
_QUIET = {
    # Lines of workers begin with the time, as ours do; colours are no text for a file.
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    "RAY_COLOR_PREFIX": "0",
    # Announces a change of Ray that no job depends on.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def quiet() -> None:
    """Leaves out what Ray writes for its own developers; call before Ray is imported.

    What the user has set stays.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def require_token() -> None:
    """Makes a Ray that this process starts answer only to the processes that it starts.

    A mode, a token or a file with one that the environment names stays.
    """
    mode = os.environ.setdefault(_MODE, "token")
    if mode.lower() == "token" and not (os.environ.get(_TOKEN) or os.environ.get(_TOKEN_FILE)):
        os.environ[_TOKEN] = secrets.token_hex(32)
    if "ray" in sys.modules:
        from pipeline.ray_internals import read_environment_again

        read_environment_again()


def start(**settings: Any) -> None:
    """Starts a Ray on this machine, with further arguments of `ray.init`.

    Raises:
        UserError: It did not start at several attempts.
    """
    require_token()
    import ray

    reason = ""
    for attempt in range(1, _ATTEMPTS + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            ray.init(address="local", include_dashboard=False, **settings)
            break
        except (TypeError, ValueError):  # Of the arguments.
            raise
        except Exception as error:  # Ray has no type of its own for a start that took too long.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ray.shutdown()
            _end(set(psutil.Process().children(recursive=True)) - before)
        if attempt < _ATTEMPTS:
            logger.warning(
                "Ray did not start (%s); is the machine busy? Trying again, %d of %d",
                reason,
                attempt + 1,
                _ATTEMPTS,
            )
            time.sleep(_PAUSE_S)
    else:
        raise _never_started(reason)
    # A folder that another user's Ray has made is no reason not to train.
    if ray.is_initialized():
        with contextlib.suppress(OSError, ValueError):
            _announce()


def _never_started(reason: str) -> UserError:
    load = ", ".join(f"{number:.0f}" for number in os.getloadavg())
    return UserError(
        f"Ray: did not start on this machine at {_ATTEMPTS} attempts (the last: {reason}): the "
        f"machine must have CPU and memory to spare (load {load} on {os.cpu_count()} cores): end "
        "what keeps it busy and start the same command again; Ray's own words are in "
        "/tmp/ray/session_latest/logs"
    )


def _announce() -> None:
    """Writes down for Prometheus where the metrics are, as a Ray with a dashboard does by itself.

    `infra/prometheus/local.yaml` reads all such files. They go with their processes.
    """
    import ray

    folder = Path(ray.get_runtime_context().get_temp_dir())
    for left in folder.glob(_TARGETS.format("*")):
        # One that another user has left, or with another name, is no reason to write none.
        with contextlib.suppress(OSError, ValueError):
            if not psutil.pid_exists(int(left.stem.rpartition("-")[2])):
                left.unlink(missing_ok=True)
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    file = folder / _TARGETS.format(os.getpid())
    # All users may write to Ray's folder: a link that one of them has put there is not followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(file, flags, 0o644), "w") as out:
        json.dump([{"labels": {"job": "ray"}, "targets": nodes}], out)
    atexit.register(file.unlink, missing_ok=True)


def _end(processes: set[psutil.Process]) -> None:
    """Ends what a start that failed has left: it would keep the machine busy at the next."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(processes), timeout=5)
