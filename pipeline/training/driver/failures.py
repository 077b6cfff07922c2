"""Messages about failures: in the run's log while it recovers, and when it gives up."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError, RayError

from model.errors import ModelError, Unreachable
from pipeline import monitoring
from pipeline.errors import Outage, UserError, told_by_system
from pipeline.log_lines import log_as
from pipeline.ray_internals import (
    cause_of,
    never_lived,
    raise_at_once,
    say_nothing_of_shutdowns,
    tell_late_answers_in_one_line,
)
from pipeline.training.config import RunConfig, TrainMixConfig
from pipeline.training.saving import snapshot

logger = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 5.0


class TrainingDefect(RuntimeError):
    """A defect that ended the run at once; the message holds the worker's traceback."""


class FailureReporter(ray.train.UserCallback):
    """Reports failures of workers, and from where the run resumes, in the controller's log."""

    def __init__(self, run: RunConfig, stop: Any = None) -> None:
        self._run, self._stop = run, stop

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrives in the controller's process, before the first worker starts."""
        self.__dict__.update(state)
        raise_at_once(_is_final)
        say_nothing_of_shutdowns()
        tell_late_answers_in_one_line()
        log_as("controller")
        monitoring.FAILURES.start(run=self._run.name)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Prints one line for each failure of workers from which the run may recover."""
        if any(map(_is_final, worker_exceptions.values())):
            return  # The driver tells it.
        monitoring.FAILURES.add(run=self._run.name)
        places = self._places()
        causes = "; ".join(
            f"worker {rank}{places.get(rank, '')}: {_first_line(error)}"
            for rank, error in worker_exceptions.items()
        )
        logger.error(
            "run %s: %s. Unless it failed too often, it goes on %s",
            self._run.name,
            causes,
            way_on(self._run),
        )

    def _places(self) -> dict[int, str]:
        """Where each worker was, for a message; empty where that is not known."""
        if self._stop is None:
            return {}
        try:
            found: Any = ray.get(self._stop.places.remote(), timeout=_ANSWER_WITHIN_S)
        except RayError:  # There is another error to report.
            return {}
        return {rank: f" on {where}" for rank, where in found.items()}


def _is_final(error: BaseException) -> bool:
    """Whether it is a mistake, which each further attempt would meet again."""
    inner = cause_of(error)
    return isinstance(inner, UserError | ModelError) and not isinstance(inner, Outage | Unreachable)


def way_on(run: RunConfig) -> str:
    """Names the place from which a run resumes, for a message: `from checkpoint ...`.

    It raises nothing, since the caller has another error to report.
    """
    try:
        step = snapshot.latest_step(run)
    except Exception as error:
        return f"from its newest checkpoint (the storage does not answer: {error})"
    if not step:
        return "from the start: it has no checkpoint"
    return f"from checkpoint {snapshot.address_of(run, step)}"


def _first_line(error: BaseException) -> str:
    """The kind and the first line of an error, without Ray's wrapping."""
    inner = cause_of(error)
    lines = [line for line in str(inner).splitlines() if line.strip()] or [""]
    return f"{type(inner).__name__}: {lines[0][:300]}"


def explained(error: Exception, config: TrainMixConfig) -> Exception:
    """Returns the mistake or the failing place that ended the run, or else the error itself.

    The error is a `TrainingFailedError`, or what its controller raised before it began.
    """
    failures = getattr(error, "worker_failures", None) or {}
    causes = [cause_of(failure) for failure in failures.values()]
    # Mistakes first: the other workers fail too, because the one that met it is gone.
    for inner in causes:
        if isinstance(inner, UserError | ModelError):
            return inner
    for inner in causes:
        if isinstance(inner, OSError) and (told := told_by_system(inner)):
            place = inner.filename or "the disk of a worker"
            return UserError(f"{place}: {told}; the same command resumes {way_on(config.run)}")
    failure = getattr(error, "controller_failure", None) or _at_the_start(error)
    if isinstance(failure, UserError):  # As of a storage that it asked for the newest checkpoint.
        return failure
    # Ray's own files in the run's folder, such as its snapshot; some errors of Ray are OSErrors.
    if isinstance(failure, OSError) and not isinstance(failure, RayError | TimeoutError):
        told = told_by_system(failure) or f"{failure}: see to the store"
        return UserError(
            f"run.storage={config.run.storage}: the state of run {config.run.name} was not "
            f"stored: {told}; the same command resumes {way_on(config.run)}"
        )
    if not isinstance(error, ray.train.TrainingFailedError):
        return error
    logger.error(
        "run %s failed more often than cluster.max_failures=%d; the same command resumes %s",
        config.run.name,
        config.cluster.max_failures,
        way_on(config.run),
    )
    return error


def _at_the_start(error: Exception) -> BaseException | None:
    """What Ray Train's controller raised as it was made; Ray passes on its text alone."""
    if isinstance(error, RayActorError) and never_lived(error):
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        if found := re.match(r"(?:OSError|PermissionError): (?:\[Errno (\d+)\] )?(.*)", last):
            code = int(found[1] or 0)
            return OSError(code, os.strerror(code)) if code else OSError(found[2])
    return None
