"""Asking again while something fails that will recover: an object store, a full disk."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0


def patiently(work: Callable[[], T], patience_s: float, failing: str, succeeded: str = "") -> T:
    """Calls `work` until it succeeds, with growing pauses; on the calling thread.

    Args:
        work: What may fail with any exception.
        patience_s: After which the last exception is raised.
        failing: What the log says before "again in ... s".
        succeeded: What it says when it worked after all; nothing if empty.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            result = work()
        except Exception as error:
            if time.monotonic() - began + pause > patience_s:
                raise
            logger.warning("%s, again in %.0f s: %s", failing, pause, error)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if succeeded and pause > _FIRST_PAUSE_S:
                logger.warning("%s", succeeded)
            return result
