"""Spreads items of work over processes of a Ray cluster, and survives the deaths of some of them.

A worker process keeps what all items need (a network, an open dataset) and does one item at a time,
so that a death is known by the item over which it happened. An item is handed out only to a worker
that is alive and idle: one that still waits for its place in the cluster holds nothing back.
Conversion, evaluation and prediction all go through here.
"""

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pipeline.errors import UserError
from pipeline.log_lines import log_as
from pipeline.ray_internals import never_lived

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_EARLY_DEATHS = 10
"""So many deaths of workers that had not yet taken any work end the job."""


@dataclass(frozen=True)
class Death:
    """The death of a worker process while it did an item."""

    index: int
    """Position of the item."""
    of_item: int
    """How many workers this item has cost by now."""
    of_worker: int
    """How many processes this worker has lost by now."""
    reason: str
    """Ray's first line about it."""


class _Worker:
    """The actor: makes the function at the first item, and applies it to one item a call."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        log_as("worker")
        self._make = make
        self._function: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Returns once the process is there."""

    def work(self, item: Any) -> tuple[str, Any]:
        """Kind and value of what came out: Ray would wrap errors into exceptions of its own."""
        try:
            if self._function is None:
                self._function = self._make()
            return "result", self._function(item)
        except UserError as error:
            return "mistake", str(error)
        except Exception:
            return "defect", traceback.format_exc()


class Workers(Generic[Item, Result]):
    """Worker processes of a cluster; a context manager, at whose end they are gone.

    Args:
        make: Called once in each process for the function that does an item. It is stored once in
            the cluster, whatever it holds, and must pickle.
        count: Number of processes; None takes as many as the cluster has CPUs for now.
        num_cpus: Logical CPUs that each holds.
        num_gpus: GPUs that each holds.
        runtime_env: Ray's runtime environment of the processes.
        on_death: Decides whether an item whose worker died is done again; it may raise instead.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Item], Result]],
        count: int | None,
        *,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        runtime_env: dict[str, Any] | None = None,
        on_death: Callable[[Death], bool],
    ) -> None:
        import ray

        self._on_death = on_death
        self._count = count or max(1, int(ray.cluster_resources().get("CPU", 1) // num_cpus))
        self._make = ray.put(make)
        # Spread over the nodes; and without a strategy of their own, the workers of a trial of Ray
        # Tune would belong into the trial's placement group, which has no room for them.
        self._kind = ray.remote(_Worker).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            runtime_env=runtime_env,
            scheduling_strategy="SPREAD",
        )
        self._actors: list[Any] = []
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> "Workers[Item, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def run(self, items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Does items, and yields position and result of each as it is done.

        Raises:
            UserError: A worker met a user's mistake.
            RuntimeError: A defect of ours, with the worker's traceback.
        """
        import ray
        from ray import exceptions

        died = (
            exceptions.RayActorError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
            exceptions.NodeDiedError,
        )
        while len(self._actors) < min(self._count, len(items)):
            self._actors.append(self._kind.remote(self._make))
        waiting, left = deque(range(len(items))), len(items)
        deaths: Counter[int | None] = Counter()
        # By what is waited for: the worker, and the item that it does; None until it is there.
        running: dict[Any, tuple[int, int | None]] = {
            actor.ready.remote(): (worker, None) for worker, actor in enumerate(self._actors)
        }
        idle: list[int] = []

        def hand_out(worker: int) -> None:
            following = waiting.popleft()
            running[self._actors[worker].work.remote(items[following])] = (worker, following)

        while left:
            (reference, *_), _ = ray.wait(list(running))
            worker, index = running.pop(reference)
            try:
                kind, value = ray.get(reference) or ("ready", None)
            except died as error:
                self._deaths[worker] += 1
                deaths[index] += 1
                if never_lived(error) or deaths[None] > MAX_EARLY_DEATHS:
                    raise
                # The new process may wait for a place for ever, if its node is gone; an item that
                # is to be done again goes to a worker that is idle, if there is one.
                self._actors[worker] = self._kind.remote(self._make)
                running[self._actors[worker].ready.remote()] = (worker, None)
                if index is not None:
                    reason = str(error).partition("\n")[0]
                    death = Death(index, deaths[index], self._deaths[worker], reason)
                    if self._on_death(death):
                        waiting.appendleft(index)
                        if idle:
                            hand_out(idle.pop())
                    else:
                        left -= 1
                continue
            if kind == "mistake":
                raise UserError(value)
            if kind == "defect":
                raise RuntimeError(value)
            # The next item goes out before this result is dealt with, which may take a while.
            if waiting:
                hand_out(worker)
            else:
                idle.append(worker)
            if index is not None:
                left -= 1
                yield index, cast(Result, value)
