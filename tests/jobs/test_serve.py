"""The service on Ray: what it answers, that it sends away what is too much, and how it ends."""

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

import pytest

from jobs.cli import parse
from pipeline.errors import UserError
from pipeline.serving.config import ServeConfig
from pipeline.serving.gate import KEY
from pipeline.serving.on_ray import calls_of_replica, on_cluster
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
