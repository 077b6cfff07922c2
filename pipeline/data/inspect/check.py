"""A check in a pool of processes: which samples are read, and where the findings go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.data.inspect.local_pool import map_in_pool
from pipeline.data.inspect.report import CheckReport, Finding
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
    for task, (findings, found) in map_in_pool(check, tasks, workers):
        section = report.section(task.dataset, task.split)
        section.checked += len(task.samples)
        section.findings.extend(findings)
        yield task, found
        progress.add(len(task.samples), section.name)


def spread_evenly(items: Sequence[Item], share: float) -> tuple[Item, ...]:
    """A share of the items, at least one of them, spread evenly over all."""
    count = max(1, round(share * len(items)))
    places = {i * len(items) // count for i in range(count)}
    return tuple(items[i] for i in sorted(places) if i < len(items))
