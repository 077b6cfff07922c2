"""Ends a worker whose training stands still, once the log and the run's folder hold its stacks.

A step that never ends costs every GPU of the run, and says nothing: a worker waits for another one,
which waits for a file, a lock or a device. Each worker watches itself. When one ends, Ray Train
starts all of them anew from the last checkpoint.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import ray

from pipeline import monitoring
from pipeline.storage.open import open_storage
from pipeline.training.config import RunConfig

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""Exit code of a worker that ended itself."""
_FOR_THE_OTHERS_S = 10.0
"""Seconds between its own stacks and its end, for the others: the first death ends them all."""
_TELL_EVERY_S = 1.0
"""Least seconds between two beats that Prometheus hears of."""
_LOOK_S = 5.0
"""Most seconds between two looks: less than `_FOR_THE_OTHERS_S`, so that workers which stand still
together all leave their stacks."""
_FIRST_STEP_S = 1800.0
"""Seconds that the first step may take: compilation, a cold cache, an object store that is slow."""


class Watchdog:
    """Watches the steps of this worker as a context, until it is closed.

    Args:
        run: Where the stacks are stored, as `<run.name>/stuck/worker-<rank>.txt`.
        stuck_s: Seconds without a beat that are too many; 0 watches nothing.
        rank: Number of the worker.
        end: Ends the process.
    """

    def __init__(
        self, run: RunConfig, stuck_s: float, rank: int, end: Callable[[int], object] = os._exit
    ) -> None:
        self._run, self._stuck_s, self._rank, self._end = run, stuck_s, rank, end
        self._last = self._told = 0.0
        self._allowed_s = max(stuck_s, _FIRST_STEP_S)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        """Begins to watch, until the first beat with more patience."""
        self._last = time.monotonic()
        if self._stuck_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the watch."""
        self.close()

    def beat(self) -> None:
        """Says that the worker moves: after each step, and for each image of a validation."""
        self._last, self._allowed_s = time.monotonic(), self._stuck_s
        if self._last - self._told > _TELL_EVERY_S:
            self._told = self._last
            labels = {"run": self._run.name, "worker": str(self._rank)}
            monitoring.BEAT_TIME.set(time.time(), **labels)

    def close(self) -> None:
        """Ends the watch: what follows the last step takes as long as the storage does."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(_LOOK_S, self._stuck_s / 8)):
            allowed_s = self._allowed_s
            # In case nothing of Python runs any more, this thread included: a thread of the
            # interpreter's own then writes the stacks to the log and ends the process.
            faulthandler.dump_traceback_later(2 * allowed_s, exit=True, file=2)
            waited_s = time.monotonic() - self._last
            if waited_s > allowed_s:
                self._report(waited_s, allowed_s)
                # A worker that reached its end meanwhile is not to be ended.
                if not self._closed.wait(_FOR_THE_OTHERS_S):
                    self._end(EXIT_CODE)
                return

    def _report(self, waited_s: float, allowed_s: float) -> None:
        node = ray.get_runtime_context().get_node_id()[:8] if ray.is_initialized() else "this one"
        text = (
            f"worker {self._rank} on node {node} ({os.uname().nodename}), process {os.getpid()}: "
            f"no step for {waited_s:.0f} s ({allowed_s:g} are allowed: cluster.stuck_s)"
        )
        stacks = stacks_of_all_threads()
        logger.error("%s; it ends, and the run goes on from its last checkpoint\n%s", text, stacks)
        for handler in logging.getLogger("pipeline").handlers:
            handler.flush()
        # The log of a cluster folds lines that are alike on several workers; the file does not.
        path = f"{self._run.name}/stuck/worker-{self._rank}.txt"
        try:
            open_storage(self._run.storage).write(path, f"{text}\n{stacks}\n".encode())
        except Exception as error:  # The storage may be what hangs or fails.
            logger.error("%s is not in %s: %s", path, self._run.storage, error)


def stacks_of_all_threads() -> str:
    """Returns where each thread of this process is, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(
        sys._current_frames().items(), key=lambda item: item[0] != threading.main_thread().ident
    )
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in frames
    )
