"""What runs first in each worker process of a local Ray; imports next to nothing."""

import logging


def quiet() -> None:
    """Stops a warning a second that there is no dashboard to ask."""
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)
