"""One small Ray for the whole test session: starting one takes seconds."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local_ray import require_token


@pytest.fixture(scope="session")
def local_ray(s3_endpoint: str) -> Iterator[None]:
    """A Ray on this machine with 4 logical CPUs, whose workers reach the S3 server of the tests."""
    import ray

    require_token()
    assert os.environ["AWS_ENDPOINT_URL"] == s3_endpoint  # Workers inherit it at the start alone.
    for left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            break
        except Exception as error:  # Ray's own kind: 30 s may be too few on a busy machine.
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
    yield
    ray.shutdown()


def run_command(module: str, *words: str) -> None:
    """Runs a command that starts a Ray of its own, in a process of its own; it must end with 0.

    What the Ray of other tests has left in the environment (a token, whether lines of workers have
    a prefix) would be settings of the command's.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
