"""Errors of a file system that pass, as of a server that starts again, and the wait for that.

A disk of the machine itself seldom recovers, but a network file system answers with the same
errors: while its server is away (soft mounts, FUSE), and once where a file was replaced elsewhere.
"""

import errno
import functools
import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

AWAY = frozenset(
    getattr(errno, name)
    for name in "ESTALE ETIMEDOUT ENOTCONN EHOSTDOWN EHOSTUNREACH EREMOTEIO ENETDOWN ENETUNREACH "
    "ECONNREFUSED ECONNRESET ECONNABORTED".split()
)
"""The file system as a whole does not answer."""
PASSES = AWAY | {errno.EIO}
"""These may pass. A damaged part of a disk has EIO too, and keeps it."""

_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.0)
"""Before each further attempt. A file system that waits has waited a minute before it says so."""


class _Named(Protocol):
    uri: str


Self = TypeVar("Self", bound=_Named)


def patient(
    method: Callable[Concatenate[Self, P], T],
) -> Callable[Concatenate[Self, P], T]:
    """Repeats a method of a storage for some seconds while it meets what may pass."""

    @functools.wraps(method)
    def call(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for pause in _PAUSES_S:
            try:
                return method(self, *args, **kwargs)
            except OSError as error:
                if error.errno not in PASSES:
                    raise
                if pause == _PAUSES_S[0]:
                    logger.warning("%s: %s: trying again", self.uri, error)
            time.sleep(pause)
        return method(self, *args, **kwargs)

    return call
