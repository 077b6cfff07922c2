"""A check in a pool of processes: which samples are read, and where the findings go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.data.inspect.local_pool import map_in_pool
from pipeline.data.inspect.report import CheckReport, Finding
from pipeline.progress import Progress

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class CheckTask:
    """Samples of one split that one process checks; subclasses add what it needs for that."""

    dataset: str
    split: str
    samples: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What one process found; subclasses add what is compared over all of them."""

    findings: tuple[Finding, ...]


Task = TypeVar("Task", bound=CheckTask)
Found = TypeVar("Found", bound=Checked)


def run_checks(
    report: CheckReport, check: Callable[[Task], Found], tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[Task, Found]]:
    """Checks tasks in a pool, adds the findings to the report, and yields each task's result.

    Args:
        report: Has a section for each split of the tasks.
        check: A function of a module; it and the tasks must pickle.
        tasks: What to check.
        workers: Processes; None takes one for each CPU.

    Raises:
        UserError: A storage fails, or a process died.
    """
    progress = Progress(sum(len(task.samples) for task in tasks), "samples")
    for task, checked in map_in_pool(check, tasks, workers):
        section = report.section(task.dataset, task.split)
        section.checked += len(task.samples)
        section.findings.extend(checked.findings)
        yield task, checked
        progress.add(len(task.samples), section.name)


def spread_evenly(items: Sequence[Item], share: float) -> tuple[Item, ...]:
    """A share of the items, at least one of them, spread evenly over all."""
    count = max(1, round(share * len(items)))
    places = {i * len(items) // count for i in range(count)}
    return tuple(items[i] for i in sorted(places) if i < len(items))
