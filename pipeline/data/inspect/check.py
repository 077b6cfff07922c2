"""A check in a pool of processes: which samples are read, and where the findings go."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.data.inspect.report import CheckReport, Finding
from pipeline.errors import UserError
from pipeline.progress import Progress

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class CheckTask:
    """Samples of one split that one process checks; subclasses add what it needs for that."""

    dataset: str
    split: str
    samples: tuple[Any, ...]


Task = TypeVar("Task", bound=CheckTask)


def run_checks(
    report: CheckReport,
    check: Callable[[Task], tuple[list[Finding], Found]],
    tasks: Sequence[Task],
    workers: int | None,
) -> Iterator[tuple[Task, Found]]:
    """Checks tasks in a pool, adds the findings to the report, and yields what else was found.

    Args:
        report: Has a section for each split of the tasks.
        check: A function of a module; it and the tasks must pickle. Returns the findings of a task
            and whatever is compared over all tasks.
        tasks: What to check.
        workers: Processes; None takes one for each CPU.

    Raises:
        UserError: A storage fails, or a process died.
    """
    progress = Progress(sum(len(task.samples) for task in tasks), "samples")
    for task, (findings, found) in _map_in_pool(check, tasks, workers):
        section = report.section(task.dataset, task.split)
        section.checked += len(task.samples)
        section.findings.extend(findings)
        yield task, found
        progress.add(len(task.samples), section.name)


def _map_in_pool(
    function: Callable[[Item], Found], tasks: Sequence[Item], workers: int | None
) -> Iterator[tuple[Item, Found]]:
    """Applies a function to tasks on this machine, and yields the results as they come."""
    workers = min(workers or os.cpu_count() or 1, max(1, len(tasks)))
    if workers == 1:
        for task in tasks:
            yield task, function(task)
        return
    # Not forked: the parent may hold threads and locks.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    running: dict[Future[Found], Item] = {}
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


def spread_evenly(items: Sequence[Item], share: float) -> tuple[Item, ...]:
    """A share of the items, at least one of them, spread evenly over all."""
    count = max(1, round(share * len(items)))
    places = {i * len(items) // count for i in range(count)}
    return tuple(items[i] for i in sorted(places) if i < len(items))
