"""Stopping a run from outside, without losing a step: `ray job stop`, Ctrl-C, kill.

    signal -> driver -> StopSignal (an actor) -> worker 0 -> all workers, after the same step

The driver's handler only sets the actor's reason. Worker 0 asks the actor once a second from a
thread and passes the answer on in an all-reduce that each step makes anyway. After that step all
workers write a checkpoint and end. Ray kills a job's driver `RAY_JOB_STOP_WAIT_TIME_S` seconds
after the signal (3 if unset), which must be long enough for one step and one checkpoint. While no
worker asks (the run waits for nodes, or its workers start), there is nothing to wait for: the
driver ends by itself.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import Terminated
from pipeline.ray_internals import SUBMITTED_JOB
from pipeline.signals import handled

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ASK_EVERY_S = 1.0
_ANSWER_WITHIN_S = 10.0
_UNHEARD_S = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(KeyboardInterrupt):
    """The run was stopped from outside; the same command resumes from its last checkpoint."""


class TrainingTerminated(TrainingStopped, Terminated):
    """It was stopped by SIGTERM, as by `ray job stop`."""


def outcome_of(reason: str) -> type[TrainingStopped]:
    """The exception for a reason of a `StopSignal`, which is the name of a signal."""
    return TrainingTerminated if reason == "SIGTERM" else TrainingStopped


class StopSignal:
    """The actor that holds why a run should stop (empty while it should not), and its workers."""

    def __init__(self) -> None:
        self._reason = ""
        self._heard = False
        self._places: dict[int, str] = {}

    def place(self, rank: int, where: str) -> None:
        """Notes the node and process of a worker."""
        self._places[rank] = where

    def places(self) -> dict[int, str]:
        """The node and process of each worker by rank; of a number that has gone, the last one."""
        return dict(self._places)

    def request(self, reason: str) -> None:
        """Stops the run; the first reason counts."""
        self._reason = self._reason or reason

    def reason(self) -> str:
        """Why to stop, or an empty string."""
        return self._reason

    def listen(self) -> str:
        """Why to stop, or an empty string, for a worker that acts upon it."""
        self._heard = True
        return self._reason

    def was_heard(self) -> bool:
        """Whether a worker has listened since this was asked last."""
        heard, self._heard = self._heard, False
        return heard


def start_signal() -> Any:
    """Starts a `StopSignal` beside the driver, with which it lives and dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(StopSignal).options(scheduling_strategy=here).remote()


def run_stoppable(work: Callable[[], T], stop: Any) -> T:
    """Runs the driver's part of a training while SIGTERM and SIGINT ask it to stop.

    The work runs on a thread, since Ray Train aborts on SIGINT where it runs on the main one. In
    other threads than the main one (Ray Tune) signals are left to their owner.

    Args:
        work: Returns once the workers have ended.
        stop: A `StopSignal` that the workers listen to.

    Raises:
        TrainingStopped: It was asked to stop, and for half a minute no worker was there to do so.
        KeyboardInterrupt: A second SIGINT: the workers are killed without a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        asked.append(name)
        wait_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
        if number == signal.SIGINT:
            limit = "; once more to end at once, without a checkpoint"
        elif SUBMITTED_JOB in os.environ:
            limit = f"; Ray kills this job in {wait_s} s (RAY_JOB_STOP_WAIT_TIME_S)"
        else:
            limit = ""
        logger.warning(
            "%s: the workers finish their step and write a checkpoint; without any, this ends in "
            "%.0f s%s",
            name,
            _UNHEARD_S,
            limit,
        )
        stop.request.remote(name)

    asked: list[str] = []
    thread = threading.Thread(target=target, name="training", daemon=True)
    with handled(handle, *_SIGNALS):
        thread.start()
        audience = _Audience(stop)
        while thread.is_alive():
            thread.join(0.5)
            if asked and audience.is_gone() and thread.is_alive():
                raise outcome_of(asked[0])(f"was asked to stop ({asked[0]}) while no worker ran")
    if errors:
        raise errors[0]
    return results[0]


class _Audience:
    """Whether workers listen to a `StopSignal`, asked by the driver once it was set."""

    def __init__(self, stop: Any) -> None:
        self._stop = stop
        self._last: float | None = None

    def is_gone(self) -> bool:
        """Whether no worker has listened for `_UNHEARD_S`, since the first call at the earliest."""
        heard = self._last is None
        with contextlib.suppress(RayError):
            heard |= ray.get(self._stop.was_heard.remote(), timeout=_ANSWER_WITHIN_S)
        if heard or self._last is None:
            self._last = time.monotonic()
        return time.monotonic() - self._last > _UNHEARD_S


class StopListener:
    """Asks a `StopSignal` from a thread, so that reading the answer costs nothing.

    It asks as long as its process lives, also after the answer and after the last step: so the
    driver knows that a checkpoint is still being written or uploaded.
    """

    def __init__(self, stop: Any) -> None:
        self.reason = ""
        """Why to stop, or an empty string."""
        self._stop = stop
        threading.Thread(target=self._listen, name="stop-listener", daemon=True).start()

    def _listen(self) -> None:
        while True:
            # Without the driver there is nobody to stop for: its end takes the workers along.
            with contextlib.suppress(Exception):
                self.reason = ray.get(self._stop.listen.remote(), timeout=_ANSWER_WITHIN_S)
            time.sleep(_ASK_EVERY_S)
