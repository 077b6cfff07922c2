"""Where Ray Train starts a worker of a training.

Ray reads this function in the controller of the run as well, and the run's plan in the process that
manages its data. Neither trains, so this module and those of the plan do without torch and timm,
which take seconds of CPU and hundreds of MiB of memory in each process, whenever workers start.
"""

from typing import Any

from pipeline.training.job import EarlyEnd


def start_worker(settings: dict[str, Any]) -> EarlyEnd:
    """Trains as one worker; `settings["job"]` is a `Job`."""
    from pipeline.training.worker.loop import train_worker

    return train_worker(settings)
