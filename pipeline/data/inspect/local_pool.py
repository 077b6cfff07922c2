"""A pool of processes on this machine, for checks that need no cluster."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_pool(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[Task, Result]]:
    """Applies a function of a module to tasks, and yields the results as they come.

    Args:
        function: What to do; it and the tasks must pickle.
        tasks: Its arguments.
        workers: Processes; None takes one for each CPU.

    Raises:
        UserError: The function does, or a process died.
    """
    workers = min(workers or os.cpu_count() or 1, max(1, len(tasks)))
    if workers == 1:
        for task in tasks:
            yield task, function(task)
        return
    # Not forked: the parent may hold threads and locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    running: dict[Future[Result], Task] = {}
    left = iter(tasks)
    try:
        while True:
            # A few more than processes, not all: results of a large job would pile up.
            for task in left:
                running[pool.submit(function, task)] = task
                if len(running) >= 2 * workers:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            f"workers={workers}: a worker process died, most likely for lack of memory: lower "
            "workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
