"""One small Ray for the whole test session: starting one takes seconds."""

import logging
import os
from collections.abc import Iterator

import pytest

from jobs.local_ray import require_token


@pytest.fixture(scope="session")
def local_ray(s3_endpoint: str) -> Iterator[None]:
    """A Ray on this machine with 4 logical CPUs, whose workers reach the S3 server of the tests."""
    import ray

    require_token()
    assert os.environ["AWS_ENDPOINT_URL"] == s3_endpoint  # Workers inherit it at the start alone.
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    yield
    ray.shutdown()


def environment_without_ray() -> dict[str, str]:
    """Gives this process's environment for a command that starts a Ray of its own.

    What the Ray of other tests has left there (a token, whether lines of workers have a prefix)
    would be settings of the command's.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
