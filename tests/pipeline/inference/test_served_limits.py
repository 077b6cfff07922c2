"""Turns, time and bodies of the calls to the served model, and what an answer may say."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from pipeline.inference import served_limits
from pipeline.inference.served_limits import Bodies, Limits, Turns, guarded


def test_so_many_calls_at_once():
    turns = Turns(Limits(max_parallel=2))
    running, most, lock = 0, 0, threading.Lock()

    def call() -> None:
        nonlocal running, most
        # A turn within a turn is the same one.
        with turns.one(is_timed=True), turns.one():
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_whoever_waits_too_long_is_sent_away():
    turns = Turns(Limits(max_parallel=1, max_call_s=0.05))
    codes = []

    def call() -> None:
        try:
            with turns.one(is_timed=True):
                codes.append("turn")
        except MlflowException as error:
            codes.append(error.error_code)

    with turns.one():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    call()
    assert codes == ["TEMPORARILY_UNAVAILABLE", "turn"]


def test_the_end_of_a_call():
    turns = Turns(Limits(max_call_s=0.01))
    turns.check()  # Outside of any call.
    with turns.one(is_timed=True):
        turns.check()
        time.sleep(0.02)
        with pytest.raises(MlflowException, match=r"longer than 0\.01 s") as caught:
            turns.check()
        assert caught.value.get_http_status_code() == 504
    turns.check()
    with turns.one():
        time.sleep(0.02)
        turns.check()


@pytest.mark.parametrize(("server_s", "seconds"), [("20", 20), ("600", 50), ("", 50), ("x", 50)])
def test_nobody_waits_longer_than_the_server(monkeypatch, server_s, seconds):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", server_s)
    assert Limits().seconds == seconds


def test_bodies_are_bounded_before_they_are_parsed():
    limits = Limits(max_call_mib=1)
    answer = guarded(lambda *_: "done", Turns(limits), limits)
    assert answer(b"x" * 2_400_000, "application/json", of_other_and_labels(), None) == "done"
    with pytest.raises(MlflowException, match=r"must be at most 2\.5 MiB"):
        answer(b"x" * 2_700_000, "application/json", None, None)


@pytest.mark.parametrize(
    "body", [b"{}", b"x,y", b'{"params": 3}', b'{"params": {"other": "none"}}']
)
def test_a_body_of_another_form_is_left_to_mlflow(body):
    answer = guarded(lambda *_: "answered", Turns(Limits()), Limits())
    assert answer(body, "application/json", of_other_and_labels(), None) == "answered"


def test_a_misspelt_parameter_is_refused_and_not_ignored():
    answer = guarded(lambda *_: "answered", Turns(Limits()), Limits())
    with pytest.raises(MlflowException) as caught:
        answer(b'{"params": {"lables": ["a"]}}', "application/json", of_other_and_labels(), None)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert caught.value.message == (
        "params.lables: no such parameter: there are other, labels; did you mean 'labels'?"
    )


def of_other_and_labels() -> SimpleNamespace:
    """A loaded model with two parameters."""
    schema = [SimpleNamespace(name="other"), SimpleNamespace(name="labels")]
    return SimpleNamespace(metadata=SimpleNamespace(get_params_schema=lambda: schema))


class Connection:
    """A request that comes in parts, and what is answered."""

    def __init__(self, *parts: bytes, end: str = "whole") -> None:
        self.parts, self.end = list(parts), end
        self.num_read = 0
        self.sent: list[dict] = []

    async def receive(self) -> dict:
        if self.num_read < len(self.parts):
            self.num_read += 1
            more = self.num_read < len(self.parts) or self.end != "whole"
            part = self.parts[self.num_read - 1]
            return {"type": "http.request", "body": part, "more_body": more}
        if self.end == "waits":
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"] if self.sent else 0


class Server:
    """Stands for MLflow's: it reads the body, and keeps it while it works."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: dict, receive, send) -> None:
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


def test_a_body_is_bounded_while_it_comes():
    async def run() -> None:
        server = Server()
        server.may_answer.set()
        bodies = Bodies(server, Limits(max_call_mib=1, max_call_s=0.2))
        scope = {"type": "http"}
        mib = bytes(2**20)
        fits, large = Connection(mib, b"x"), Connection(*[mib] * 100)
        gone, slow = Connection(mib, end="gone"), Connection(mib, end="waits")
        for one in (fits, large, gone, slow):
            await bodies(scope, one.receive, one.send)
        assert [one.status for one in (fits, large, gone, slow)] == [200, 400, 0, 504]
        assert server.bodies == [mib + b"x"]
        assert large.num_read == 3  # And no further.
        message = json.loads(large.sent[1]["body"])["message"]
        assert message.startswith("the request is larger than a call may be: must be at most 2.5")
        assert bodies._waiting == 0

    asyncio.run(run())


def test_the_bodies_that_wait_are_bounded_together(monkeypatch):
    monkeypatch.setattr(served_limits, "MAX_WAITING_MIB", 2)

    async def run() -> None:
        server = Server()
        bodies = Bodies(server, Limits())
        scope, part = {"type": "http"}, bytes(2**19)
        calls = [Connection(part) for _ in range(5)]
        waiting = [asyncio.create_task(bodies(scope, c.receive, c.send)) for c in calls]
        await asyncio.sleep(0.05)
        server.may_answer.set()
        await asyncio.gather(*waiting)
        assert sorted(call.status for call in calls) == [200, 200, 200, 200, 503]
        later = Connection(part)
        await bodies(scope, later.receive, later.send)
        assert later.status == 200

    asyncio.run(run())
