"""Bounds what a block of code costs, in turns of a plain loop instead of seconds.

A bound in seconds fails on a slow machine and on a busy one. The loop runs in the same thread, just
before the block and just after it, and only the CPU time of this thread is counted: other threads
of the tests' process, and other processes, do not matter.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_TURNS = 2_000_000


def _seconds_of_a_turn() -> float:
    began = time.thread_time()
    for _ in range(_TURNS):
        pass
    return (time.thread_time() - began) / _TURNS


@contextmanager
def costs_at_most(million_turns: float) -> Iterator[None]:
    """Fails if the block takes more CPU time than so many million turns (30 to 70 are a second)."""
    first = _seconds_of_a_turn()
    began = time.thread_time()
    yield
    seconds = time.thread_time() - began
    turns = seconds / max(first, _seconds_of_a_turn())
    assert turns <= million_turns * 1e6, (
        f"the block took {turns / 1e6:.1f} million turns of a loop in {seconds:.2f} s of CPU; "
        f"{million_turns:g} million are allowed"
    )
