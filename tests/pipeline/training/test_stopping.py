"""Signals to a driver, with the actor and the listeners of a real Ray."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from pipeline.training import stopping
from pipeline.training.stopping import (
    StopListener,
    TrainingStopped,
    TrainingTerminated,
    run_stoppable,
    start_signal,
)

pytestmark = pytest.mark.usefixtures("local_ray")


class Unhandled(Exception):
    """The signal of a test reached no handler of the driver."""


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    """A signal that the driver does not handle fails the test, instead of ending pytest."""

    def fail(number: int, _: object) -> None:
        raise Unhandled(signal.Signals(number).name)

    before = {number: signal.signal(number, fail) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr(stopping, "_UNHEARD_S", 1.5)
    monkeypatch.setattr(stopping, "_ASK_EVERY_S", 0.1)
    actor = start_signal()
    assert ray.get(actor.reason.remote()) == ""
    yield actor
    ray.kill(actor)


def signalled(number: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """Work at whose beginning this process gets a signal: the driver has its handlers by then."""

    def run() -> Any:
        os.kill(os.getpid(), number)
        return work()

    return run


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGTERM, TrainingTerminated), (signal.SIGINT, TrainingStopped)],
)
def test_a_stop_that_no_worker_hears_ends_the_driver(stop, number, kind):
    before, over = signal.getsignal(number), threading.Event()
    began = time.monotonic()
    with pytest.raises(TrainingStopped, match="while no worker ran") as error:
        run_stoppable(signalled(number, over.wait), stop)
    assert error.type is kind
    assert time.monotonic() - began > 1.5  # A worker that just starts may yet listen.
    assert signal.getsignal(number) is before
    over.set()


def test_a_stop_that_a_worker_hears_is_waited_for(stop):
    listener = StopListener(stop)

    def last_step() -> str:
        while not listener.reason:
            time.sleep(0.02)
        time.sleep(3)  # A checkpoint and its upload: longer than nobody would be waited for.
        return str(listener.reason)

    try:
        assert run_stoppable(signalled(signal.SIGTERM, last_step), stop) == "SIGTERM"
    except TrainingStopped:  # Pytest takes it for a Ctrl-C of its own.
        pytest.fail("the worker was not waited for")


def test_a_worker_that_dies_before_its_checkpoint_is_not_waited_for(stop):
    heard, over = threading.Event(), threading.Event()

    def worker() -> None:
        while not ray.get(stop.listen.remote()):
            time.sleep(0.02)
        heard.set()  # And it listens no more.

    threading.Thread(target=worker, daemon=True).start()
    with pytest.raises(TrainingTerminated):
        run_stoppable(signalled(signal.SIGTERM, over.wait), stop)
    assert heard.is_set()
    over.set()
