"""Retrying what fails for a while and then recovers: an object store, a full disk."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0


def retry(call: Callable[[], T], timeout_s: float, failing: str, succeeded: str = "") -> T:
    """Retries a call with growing pauses until `timeout_s`, on the calling thread.

    Args:
        call: May fail with any exception.
        timeout_s: Seconds after which the last exception is raised.
        failing: What the log says before "again in ... s".
        succeeded: What the log says when it worked after all; nothing if empty.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            result = call()
        except Exception as error:
            if time.monotonic() - began + pause > timeout_s:
                raise
            logger.warning("%s, again in %.0f s: %s", failing, pause, error)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if succeeded and pause > _FIRST_PAUSE_S:
                logger.warning("%s", succeeded)
            return result
