"""The service on Ray: what it answers, that it sends away what is too much, and how it ends."""

import asyncio
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.serve.exceptions import BackPressureError

from jobs.cli import parse
from pipeline.errors import UserError
from pipeline.inference.served_limits import TooLarge
from pipeline.serving import on_ray
from pipeline.serving.calls import Answer, Away, Busy, Call, TooLate
from pipeline.serving.config import ServeConfig
from pipeline.serving.gate import KEY
from pipeline.serving.on_ray import RayBackend, calls_of_replica, on_cluster, place_of
from tests.pipeline.serving.conftest import png
from tests.support.tiny_checkpoint import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
API_KEY = "k" * 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "0"], "replicas=0: must be 1 to 1000"),
        (["--cpus", "0"], "cpus=0.0: must be above 0"),
        (["--gpus", "-1"], "gpus=-1.0: must be 0 to 16"),
    ],
)
def test_wrong_settings_are_refused(words, said):
    with pytest.raises(UserError) as error:
        parse(ServeConfig, ["--checkpoint", "x", *words])
    assert said in str(error.value)


def test_a_cluster_serves_with_a_key_only(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(UserError, match=f"{KEY} must hold a key"):
        on_cluster({"checkpoint": "models:/lseg/1"})
    monkeypatch.setenv(KEY, API_KEY)
    with pytest.raises(UserError, match=r"args.replica: no such setting.*did you mean 'replicas'"):
        on_cluster({"checkpoint": "models:/lseg/1", "replica": 2})
    assert on_cluster({"checkpoint": "models:/lseg/1", "replicas": 2}) is not None


def test_what_a_replica_holds_leaves_place_in_the_queue():
    for waiting, batch, held in ((32, 8, 16), (4, 8, 4), (1, 1, 1), (32, 1, 2)):
        config = ServeConfig(checkpoint="x", max_waiting=waiting, max_batch=batch)
        assert calls_of_replica(config) == held


class Handle:
    """A handle of Serve whose replicas answer with what is given, one after the other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.ask = self.about = self

    def remote(self, *args: object):
        return self._next()

    async def _next(self):
        found = self.answers.pop(0)
        if isinstance(found, float):
            await asyncio.sleep(found)
        if isinstance(found, Exception):
            raise found
        return found


CALL, ANSWER = Call("segment", b"x"), Answer("text/plain", b"", "one")
ABOUT = {"model": "one", "labels": [], "is_behind": False, "waiting": 0}
FULL = BackPressureError(num_queued_requests=1, max_queued_requests=1)
GONE = (RayActorError(), ActorDiedError())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([ANSWER], None),
        ([GONE[0], ANSWER], None),
        ([*GONE], Away),
        ([GONE[1], FULL], Busy),
        ([FULL], Busy),
        ([("TooLate", "")], TooLate),
        ([("TooLarge", "image: too large")], TooLarge),
        ([("UserError", "wrong")], UserError),
        ([ValueError("a defect")], ValueError),
        ([5.0], TooLate),
    ],
)
def test_what_becomes_of_a_call_to_replicas(answers, expected):
    handle = Handle(*answers)
    asked = RayBackend(handle, 0.2).ask(CALL)
    if expected is None:
        assert asyncio.run(asked) is ANSWER
    else:
        with pytest.raises(expected) as error:
            asyncio.run(asked)
        assert type(error.value) is expected
    assert handle.answers == []


def test_what_was_said_of_a_model_is_repeated_while_replicas_answer(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("pipeline.serving.on_ray.time.monotonic", lambda: now[0])
    handle = Handle(FULL, ABOUT, FULL, ANSWER, FULL, FULL, GONE[1], ABOUT)
    backend = RayBackend(handle, 50)

    def about():
        return asyncio.run(backend.about())

    with pytest.raises(Away):
        about()
    assert about() == ABOUT
    now[0] += 40
    assert about() == ABOUT
    assert asyncio.run(backend.ask(CALL)) is ANSWER
    now[0] += 40
    assert about() == ABOUT  # All are busy: one has answered a call since.
    now[0] += 40
    with pytest.raises(Away):
        about()
    with pytest.raises(Away):
        about()
    assert about() == ABOUT


def test_the_address_is_that_of_the_head_node():
    head = {"NodeID": "a", "NodeManagerAddress": "10.0.0.4",
            "Resources": {"node:__internal_head__": 1.0}}  # fmt: skip
    nodes = [{"NodeID": "b", "NodeManagerAddress": "10.0.0.5", "Resources": {}}, head]
    here = ServeConfig(checkpoint="x")
    assert place_of(here, nodes, "a") == "http://127.0.0.1:8000/"
    assert place_of(here, nodes, "b") == "http://127.0.0.1:8000/ of the head node 10.0.0.4"
    for_all = ServeConfig(checkpoint="x", host="0.0.0.0")
    assert place_of(for_all, nodes, "a") == "http://127.0.0.1:8000/"
    assert place_of(for_all, nodes, "b") == "http://10.0.0.4:8000/"


def test_a_serve_that_runs_already_is_left_as_it_is(monkeypatch):
    """Its options would not change, and at the end its applications would be gone."""
    done = []
    status = SimpleNamespace(proxies={"n": "HEALTHY"}, applications={"theirs": "RUNNING"})
    monkeypatch.setattr(on_ray.serve, "status", lambda: status)
    for name in ("start", "run", "delete", "shutdown"):
        monkeypatch.setattr(
            on_ray.serve, name, lambda *args, name=name, **kwargs: done.append(name)
        )
    with pytest.raises(UserError, match=r"runs on this cluster already \(applications: theirs\)"):
        on_ray.run_here(ServeConfig(checkpoint="x"))
    assert done == []
    on_ray.stop()  # Somebody else has come meanwhile.
    assert done == ["delete"]
    status.applications.clear()
    on_ray.stop()
    assert done == ["delete", "delete", "shutdown"]


def call(address: str, key: str = API_KEY, seed: int = 0, path: str = "v1/segment"):
    """The status, the headers and the body of an answer."""
    import base64

    body = {"image": base64.b64encode(png(seed, 240, 320)).decode(), "labels": ["dog", "sky"]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.slow
def test_the_service_answers_sends_away_and_ends(tmp_path):
    folder = tiny_checkpoint(tmp_path / "step_00000003")
    words = [sys.executable, "jobs/serve.py", "--checkpoint", str(folder), "--port", "0"]
    words += ["--max_waiting", "3", "--max_batch", "1"]
    environment = {**os.environ, KEY: API_KEY}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as job:  # fmt: skip
        try:
            assert job.stdout is not None
            line = job.stdout.readline()
            (address,) = re.findall(r" answers at (http://127\.0\.0\.1:\d+/)", line)
            status, headers, body = call(address)
            assert status == 200, body
            assert headers["LSeg-Model"] == json.loads(body)["model"] == "step_00000003"
            assert call(address, "wrong")[0] == 401
            status, _, body = call(address, path="v1/segmend")
            assert status == 404
            # Beyond two in the replica and one that waits.
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                found = list(pool.map(lambda seed: call(address, seed=seed), range(48)))
            counts = Counter(status for status, _, _ in found)
            assert set(counts) == {200, 429}, counts
            assert all(h["Retry-After"] == "1" for status, h, _ in found if status == 429)
            assert call(address)[0] == 200
            for path in ("healthz", "openapi.json", "docs", ""):
                with urllib.request.urlopen(f"{address}{path}", timeout=60) as answer:
                    assert answer.status == 200
            job.send_signal(signal.SIGINT)
            assert job.wait(60) == 0
        finally:
            job.kill()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert API_KEY not in said
