"""What one call to the served model may cost: sizes, time, and how many are worked on at once.

MLflow's scoring server reads each body whole, answers after a timeout while the work goes on, and
sends the traceback of an error to the caller. `Bodies` and `guarded` correct these for the process
that serves; they change nothing where no server runs.
"""

import asyncio
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

from pipeline.errors import UserError, did_you_mean, printable

logger = logging.getLogger(__name__)

MAX_BODY_FACTOR = 1.5
"""A body may be so many times as large as the images in it: base64 takes four thirds."""

MAX_WAITING_MIB = 512
"""Bodies of all requests that are not answered yet; those beyond are sent away."""

_VALUES_A_ROW = 20
"""Values of a row of a request's table; one is the image."""
_MAX_MESSAGE_CHARS = 2000


class TooLarge(UserError):
    """An image, a file or an answer is larger than one may be."""


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
    max_texts: int = 80_000
    """Texts that the encoder is given: labels and those of `other`, each in every template."""
    max_base_px: int = 2048
    """Largest `base_px`; half of it with `view` = `whole`, whose memory grows with its square."""

    @property
    def max_body_bytes(self) -> int:
        """Size of the body of a request."""
        return int(self.max_call_mib * 2**20 * MAX_BODY_FACTOR) + 2**20

    @property
    def max_marks(self) -> int:
        """Commas, colons and brackets in a body, those of labels among them."""
        return self.max_labels * self.max_label_chars + 100_000

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


def _check_content(data: bytes, model: Any, limits: Limits) -> None:
    """Refuses a body of which MLflow would make far more than it is, or drop a part in silence.

    A table of distinct columns takes memory by the square of the body's length, and parameters
    that the model does not have are dropped.

    Raises:
        MlflowException: BAD_REQUEST, or INVALID_PARAMETER_VALUE with the nearest parameter's name.
    """
    # Base64 holds none of these; labels may.
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > limits.max_marks:
        raise MlflowException(
            f"the request holds too many values: must be at most {limits.max_images} rows of one "
            f"image, and {limits.max_labels} labels: send more calls",
            BAD_REQUEST,
        )
    try:
        content = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return  # MLflow says what is wrong with it.
    except ValueError:
        raise MlflowException(
            "the request holds a number of thousands of digits: correct it", BAD_REQUEST
        ) from None
    if not isinstance(content, dict):
        return
    most = _VALUES_A_ROW * limits.max_images
    if any(_is_larger(value, most) for name, value in content.items() if name != "params"):
        raise MlflowException(
            f"the request's table is too large: must be at most {limits.max_images} rows of one "
            "image: send more calls",
            BAD_REQUEST,
        )
    given = content.get("params")
    known = [parameter.name for parameter in model.metadata.get_params_schema()]
    for name in given if isinstance(given, dict) else ():
        if name not in known:
            raise MlflowException.invalid_parameter_value(
                f"params.{printable(name[:100])}: no such parameter: there are {', '.join(known)}"
                f"{did_you_mean(name[:100], known)}"
            )


def _is_larger(tree: Any, most: int) -> bool:
    """Whether a parsed JSON value holds more values than so many, itself among them."""
    waiting, count = [tree], 0
    while waiting and count <= most:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
    return count > most


def guarded(
    invocations: Callable[..., Any], turns: Turns, limits: Limits
) -> Callable[[Any, Any, Any, Any], Any]:
    """MLflow's handling of a request within the limits, without tracebacks in its answers.

    Args:
        invocations: `mlflow.pyfunc.scoring_server.invocations`.
        turns: Turns of the served model.
        limits: Limits of the served model.
    """
    most = limits.max_body_bytes

    def answer(data: Any, content_type: str | None, model: Any, input_schema: Any) -> Any:
        try:
            kind, _, parameters = (content_type or "").partition(";")
            kind = kind.strip().lower()
            # A Parquet file of a few bytes may unpack to any size, and CSV holds no bytes.
            if kind != "application/json":
                raise MlflowException(
                    f"Content-Type={printable(kind[:100])}: must be application/json, with each "
                    "image in base64: send it as that",
                    BAD_REQUEST,
                )
            if len(data) > most:
                raise _too_large(f"has {len(data) / 2**20:.1f} MiB", most)
            # Parsing takes several times the memory of the body, so it needs a turn too.
            with turns.one(is_timed=True):
                _check_content(data, model, limits)
                whole = f"{kind};{parameters}" if parameters else kind
                return invocations(data, whole, model, input_schema)
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


def _too_large(what: str, most: int) -> MlflowException:
    return MlflowException(
        f"the request {what}: must be at most {most / 2**20:.1f} MiB: send more calls", BAD_REQUEST
    )


class Bodies:
    """Reads the body of each request before the server does, and ends those that are too large.

    An ASGI application around the server's.
    """

    def __init__(self, app: Any, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._waiting = 0
        """Bytes of all requests that are not answered yet."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            try:
                reading = self._read(receive, parts)
                if not await asyncio.wait_for(reading, self._limits.seconds):
                    return  # The connection ended, and nobody waits.
            except TimeoutError:
                raise MlflowException(
                    f"the request did not come whole within {self._limits.seconds:g} s: send it "
                    "at once",
                    DEADLINE_EXCEEDED,
                ) from None
        except MlflowException as error:
            await _send_error(send, error)
        else:
            parts[:] = [b"".join(parts)]
            messages = [{"type": "http.request", "body": parts[0], "more_body": False}]

            async def receive_read() -> Any:
                return messages.pop() if messages else await receive()

            await self._app(scope, receive_read, send)
        finally:
            self._waiting -= sum(map(len, parts))

    async def _read(self, receive: Any, parts: list[bytes]) -> bool:
        """Reads a body, and says whether it came whole."""
        size, most = 0, self._limits.max_body_bytes
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size > most:
                raise _too_large("is larger than a call may be", most)
            if self._waiting + len(part) > MAX_WAITING_MIB * 2**20:
                raise MlflowException(
                    "the service is busy: too many requests wait: try again later",
                    TEMPORARILY_UNAVAILABLE,
                )
            parts.append(part)
            self._waiting += len(part)
        return True


async def _send_error(send: Any, error: MlflowException) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    status = error.get_http_status_code()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": error.serialize_as_json().encode()})
