"""What one call to the served model may cost: sizes, time, and how many are worked on at once.

MLflow's scoring server reads each body whole, answers after a timeout while the work goes on, and
sends the traceback of an error to the caller. `guarded` corrects the three for the process that
serves; it changes nothing where no server runs.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    TEMPORARILY_UNAVAILABLE,
)

from pipeline.errors import did_you_mean, printable

logger = logging.getLogger(__name__)

MAX_BODY_FACTOR = 1.5
"""A body may be so many times as large as the images in it: base64 takes four thirds."""

_MAX_MESSAGE_CHARS = 2000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one call; a larger value is refused before any work."""

    max_images: int = 32
    max_image_mib: float = 16
    """Size of one file."""
    max_image_mpx: float = 24
    """Megapixels of one image, read from its header."""
    max_call_mib: float = 16
    """Size of all files of a call."""
    max_call_mpx: float = 96
    """Megapixels of all images of a call, read from their headers."""
    max_call_s: float = 50
    """Seconds after which a call over the network ends, at most MLflow's own timeout."""
    max_parallel: int = 1
    """Calls that are worked on at once; others wait, within their time. One more takes up to
    800 MiB more, and on CPUs one call keeps all cores busy."""
    max_labels: int = 1000
    max_label_chars: int = 200
    max_base_px: int = 2048
    """Largest `base_px`; half of it with `view` = `whole`, whose memory grows with its square."""

    @property
    def seconds(self) -> float:
        """Time of a call, which MLflow's timeout bounds too."""
        server_s = os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "")
        return min(self.max_call_s, float(server_s) if server_s.isdigit() else math.inf)


class Turns:
    """The time and the turn of each call; a call is a thread's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = threading.BoundedSemaphore(limits.max_parallel)
        self._mine = threading.local()

    @contextmanager
    def one(self, is_timed: bool = False) -> Iterator[None]:
        """Waits for a turn; within another of the same thread it is that one.

        Args:
            is_timed: The call has an end, as one over the network has.

        Raises:
            MlflowException: TEMPORARILY_UNAVAILABLE: none came within the time of a call.
        """
        if getattr(self._mine, "ends", None) is not None:
            yield
            return
        seconds = self._limits.seconds if is_timed else threading.TIMEOUT_MAX
        ends = time.monotonic() + seconds
        if not self._free.acquire(timeout=seconds):
            raise MlflowException(
                f"the service is busy: no turn came within {seconds:g} s: try again later",
                TEMPORARILY_UNAVAILABLE,
            )
        try:
            self._mine.ends = ends
            yield
        finally:
            self._mine.ends = None
            self._free.release()

    def check(self, *_: object) -> None:
        """Ends a call whose time is over; to be called between the parts of the work.

        Raises:
            MlflowException: DEADLINE_EXCEEDED.
        """
        ends = getattr(self._mine, "ends", None)
        if ends is not None and time.monotonic() > ends:
            raise MlflowException(
                f"the call took longer than {self._limits.seconds:g} s and was ended: send fewer "
                "or smaller images, fewer labels, or a cheaper view",
                DEADLINE_EXCEEDED,
            )


def _check_parameters(data: Any, model: Any) -> None:
    """Refuses parameters that the model does not have; MLflow drops them and answers all the same.

    Raises:
        MlflowException: INVALID_PARAMETER_VALUE; names the nearest one.
    """
    try:
        given = json.loads(data)["params"].keys()
        known = [parameter.name for parameter in model.metadata.get_params_schema()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # Not of that form: MLflow says what is wrong with it.
    for name in given:
        if name not in known:
            raise MlflowException.invalid_parameter_value(
                f"params.{printable(name[:100])}: no such parameter: there are {', '.join(known)}"
                f"{did_you_mean(name[:100], known)}"
            )


def guarded(
    invocations: Callable[..., Any], turns: Turns, limits: Limits
) -> Callable[[Any, Any, Any, Any], Any]:
    """MLflow's handling of a request within the limits, without tracebacks in its answers.

    Args:
        invocations: `mlflow.pyfunc.scoring_server.invocations`.
        turns: Turns of the served model.
        limits: Limits of the served model.
    """
    most = int(limits.max_call_mib * 2**20 * MAX_BODY_FACTOR) + 2**20

    def answer(data: Any, content_type: str | None, model: Any, input_schema: Any) -> Any:
        try:
            if content_type is None:
                raise MlflowException("Content-Type: must be application/json", BAD_REQUEST)
            if len(data) > most:
                raise MlflowException(
                    f"the request has {len(data) / 2**20:.1f} MiB: must be at most "
                    f"{most / 2**20:.1f} MiB: send more calls",
                    BAD_REQUEST,
                )
            # Parsing takes several times the memory of the body, so it needs a turn too.
            with turns.one(is_timed=True):
                _check_parameters(data, model)
                return invocations(data, content_type, model, input_schema)
        except MlflowException as error:
            if trace := error.json_kwargs.pop("stack_trace", ""):
                logger.error("a call failed:\n%s", trace)
            if len(error.message) > _MAX_MESSAGE_CHARS:
                error.message = f"{error.message[:_MAX_MESSAGE_CHARS]}..."
            raise
        except RecursionError:
            raise MlflowException("the request is nested too deeply", BAD_REQUEST) from None
        except Exception:
            logger.exception("a call failed")
            raise MlflowException(
                "the call failed; the service's log says why", INTERNAL_ERROR
            ) from None

    answer.guards = invocations  # type: ignore[attr-defined]
    return answer
