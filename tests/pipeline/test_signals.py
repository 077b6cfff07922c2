"""Handlers of signals that hold for a while."""

import os
import signal
import threading

from pipeline.signals import handled


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_handler_holds_for_the_block_and_the_old_one_is_back_afterwards():
    heard, elsewhere = [], []
    with handled(lambda number, frame: elsewhere.append(number), signal.SIGUSR1, signal.SIGUSR2):
        with handled(lambda number, frame: heard.append(number), signal.SIGUSR1) as arm:
            send(signal.SIGUSR1)
            send(signal.SIGUSR2)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # As Ray's start puts its own in place.
            send(signal.SIGUSR1)
            arm()
            send(signal.SIGUSR1)
        send(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1] * 2
    assert elsewhere == [signal.SIGUSR2, signal.SIGUSR1]


def test_an_error_gives_them_back_too():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with handled(lambda number, frame: None, signal.SIGUSR1):
            raise KeyError
    except KeyError:
        assert signal.getsignal(signal.SIGUSR1) is before


def test_in_another_thread_nothing_changes():
    seen = []

    def work() -> None:
        with handled(lambda number, frame: None, signal.SIGUSR1) as arm:
            arm()
            seen.append(signal.getsignal(signal.SIGUSR1))

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
