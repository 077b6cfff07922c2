"""A job's own handler of the signals that ask it to end, for as long as a piece of work takes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handled(handle: Handler, *numbers: signal.Signals) -> Iterator[Callable[[], None]]:
    """Handles some signals, and gives them back to their owner afterwards.

    Python hands signals to the main thread alone: in any other nothing is changed.

    Yields:
        Puts the handler in place again, where something else, such as Ray's start, replaced it.
    """
    is_main = threading.current_thread() is threading.main_thread()

    def arm() -> None:
        if is_main:
            for number in numbers:
                signal.signal(number, handle)

    before = {number: signal.getsignal(number) for number in numbers}
    try:
        arm()
        yield arm
    finally:
        if is_main:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
