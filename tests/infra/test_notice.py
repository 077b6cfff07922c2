"""How long a pod of workers announces: what `infra/before_stop.py` makes of its platform's word."""

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest

from tests.support.deployment import INFRA, PLATFORMS, cluster

VARIABLE = "LSEG_PREEMPTED_URL"


class Metadata(ThreadingHTTPServer):
    """A node's metadata, as Google's server tells them: to those alone who send its header."""

    daemon_threads = True
    answer = ""
    delay_s = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of callers that waited no longer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/computeMetadata/v1/instance/preempted"


class Answers(BaseHTTPRequestHandler):
    server: Metadata  # type: ignore[assignment]

    def do_GET(self) -> None:
        time.sleep(self.server.delay_s)
        is_asked = self.headers["Metadata-Flavor"] == "Google" and self.server.answer
        self.send_response(200 if is_asked else 404)
        self.end_headers()
        self.wfile.write(self.server.answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("before_stop", INFRA / "before_stop.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))  # To which the script adds its checkout.
        patch.setattr(sys, "dont_write_bytecode", True)  # Nothing is left in infra/.
        spec.loader.exec_module(module)
    return module


def announced(script: ModuleType, monkeypatch, **variables: str) -> float:
    """The seconds that the script announces with some variables, and words that its pods give."""
    for name in [VARIABLE, "LSEG_NOTICE_S"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["before_stop.py", "leave", "--wait_s=110"])
    told: list[float] = []
    monkeypatch.setattr(script, "leave", lambda notice_s, wait_s: told.append(notice_s))
    script.main()
    (seconds,) = told
    return seconds


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [("FALSE", 100.0), ("FALSE\n", 100.0), ("TRUE", 12.0), ("", 12.0), ("<html>", 12.0)],
)
def test_a_node_that_stays_leaves_its_pod_the_time_of_one_that_is_deleted(
    script, metadata, monkeypatch, answer, seconds
):
    metadata.answer = answer
    # A proxy knows nothing of the address.
    proxy = {"http_proxy": "http://127.0.0.1:9"}
    gke = {VARIABLE: metadata.url, "LSEG_NOTICE_S": "12"}
    assert announced(script, monkeypatch, **gke, **proxy) == seconds


def test_without_an_answer_the_node_may_go(script, metadata, monkeypatch):
    metadata.answer, metadata.delay_s = "FALSE", 30.0
    began = time.monotonic()
    assert announced(script, monkeypatch, **{VARIABLE: metadata.url, "LSEG_NOTICE_S": "12"}) == 12
    assert time.monotonic() - began < 20  # Not as long as the answer takes.
    assert script._ANSWER_WITHIN_S <= 2  # A node may have a few seconds.
    url = "http://127.0.0.1:9/preempted"
    assert announced(script, monkeypatch, **{VARIABLE: url, "LSEG_NOTICE_S": "12"}) == 12
    assert announced(script, monkeypatch, **{VARIABLE: "no url", "LSEG_NOTICE_S": "12"}) == 12


def test_a_platform_that_is_not_asked_has_one_time_for_all(script, metadata, monkeypatch):
    metadata.answer = "FALSE"
    assert announced(script, monkeypatch, LSEG_NOTICE_S="12") == 12
    assert announced(script, monkeypatch) == 100
    # A longer notice of a node pool stays what it is.
    longer = {VARIABLE: metadata.url, "LSEG_NOTICE_S": "110"}
    assert announced(script, monkeypatch, **longer) == 110


@pytest.mark.parametrize("platform", PLATFORMS)
def test_gke_alone_is_asked_at_the_address_of_every_node(platform):
    (group,) = cluster(f"{platform}/train")["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    gke = "http://169.254.169.254/computeMetadata/v1/instance/preempted"
    assert env.get(VARIABLE) == (gke if platform == "gke" else None)
