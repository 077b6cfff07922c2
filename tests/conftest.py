"""Fixtures that several packages' tests share."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import pytest
from boto3.session import Session
from moto.server import ThreadedMotoServer

from tests.support.mini_shards import mini_shards as mini_shards
from tests.support.mlflow_process import same_mlflow_afterwards as same_mlflow_afterwards
from tests.support.ray_fixtures import local_ray as local_ray
from tests.support.real_samples import shared_folder

# Two processes test at once: more threads than these would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every S3 storage is a session of its own, and each would parse botocore's large files anew.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)

_BUCKET_NUMBERS = itertools.count()


# First, since xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says what `-n 3 --dist loadgroup` keeps together: a file, and the tests that share a Ray.

    So one process alone makes the shards that many tests on Ray share; another has the Ray for
    those that convert shards of their own. What is long is slow too.
    """
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
        fixtures = getattr(item, "fixturenames", ())
        on_ray = "mini_shards" if "mini_shards" in fixtures else "local_ray"
        group = on_ray if "local_ray" in fixtures else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ends a run whose groups got lost: two processes would each start a Ray, at twice the time."""
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist ignores the groups"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server on loopback, with the AWS environment variables pointing to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield endpoint
    patch.undo()
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Any:
    """A client of that server."""
    return Session().client("s3", endpoint_url=s3_endpoint)


@pytest.fixture
def s3_bucket(s3_client: Any) -> str:
    """The `s3://` URI of a new, empty bucket."""
    name = f"bucket-{next(_BUCKET_NUMBERS)}"
    s3_client.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Gives files that are no part of the repository: the only way of tests out of the checkout.

    They are real samples of the datasets and published tables, whose licences or sizes keep them
    out of git. A test that asks for what is missing is skipped, and says what it lacks.
    """
    folder = shared_folder()

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{path} is missing; LSEG_SHARED_DATA names the folder that holds {name}")
        return path

    return find
