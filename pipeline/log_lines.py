"""The form of every line of log: date and time, node and part of the job, and what it says.

    2026-11-29 00:50:05 gpu-node-3 worker 0: step 50/800  loss 1.0442  ...

The driver of a job says where it runs only on a cluster; on one machine there is nothing to tell.
"""

import logging
import os
import sys

from pipeline.errors import printable

OURS = ("pipeline", "model", "jobs")
"""The loggers of this project."""


def here() -> str:
    """The node of this process, by the name that its cluster gives it."""
    return os.uname().nodename


class Lines(logging.Formatter):
    """Formats lines of a part of a job, such as `worker 0`; empty for a driver on one machine.

    Args:
        part: Which part.
        as_text: Keeps what names of files may hold, such as codes for the terminal or line breaks,
            out of our lines.
    """

    def __init__(self, part: str = "", as_text: bool = False) -> None:
        where = f"{here()} {part}: ".replace("%", "%%") if part else ""
        super().__init__(f"%(asctime)s {where}%(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        self._as_text = as_text

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Also escapes the message."""
        if self._as_text and record.name.partition(".")[0] in OURS:
            record.message = printable(record.message)
        return super().formatMessage(record)


def log_as(part: str) -> None:
    """Sends the lines of a process of Ray's to stdout, which Ray passes on to the driver.

    In a driver it changes nothing: its log belongs to the job.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or not ray.get_runtime_context().get_actor_id():
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines(part))
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
