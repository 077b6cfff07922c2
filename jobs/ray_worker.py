"""What runs first in each worker process of a local Ray; imports next to nothing."""

import logging
import os

import ray

# Ray is about to put the driver's working folder before PYTHONPATH, and another checkout may lie
# there: a package that is imported by then keeps the place of all of its modules.
import model  # noqa: F401
import pipeline  # noqa: F401
from pipeline.ray_internals import CLEANER_LOGGER


def prepare() -> None:
    """Points Ray's own helpers to this Ray, and stops a warning a second about its dashboard.

    Without an address they look for any Ray on the machine, and fail where there are several.
    """
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    logging.getLogger(CLEANER_LOGGER).setLevel(logging.ERROR)
