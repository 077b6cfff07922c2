"""A real Prometheus (`apt install prometheus`) that fetches from a Ray and judges by our rules."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
RULES = INFRA / "prometheus" / "rules.yaml"
BOARD = INFRA / "grafana" / "boards" / "lseg.json"
NEED_A_GPU = ("ray_node_gpus_utilization", "ray_node_gram_used")


def is_installed() -> bool:
    return shutil.which("prometheus") is not None


def expressions() -> list[str]:
    """Every expression of the board and every rule that is not an alert, for all runs."""
    panels = json.loads(BOARD.read_text())["panels"]
    found = [each["expr"] for panel in panels for each in panel.get("targets", [])]
    groups = yaml.safe_load(RULES.read_text())["groups"]
    found += [rule["expr"] for group in groups for rule in group["rules"] if "record" in rule]
    found = [each.replace("$run", ".*") for each in found]
    return [each for each in dict.fromkeys(found) if each not in NEED_A_GPU]


def alerts() -> list[dict[str, Any]]:
    """The alerts of every cluster; those of Kubernetes are in a file of their own."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


class PrometheusServer:
    """Prometheus on loopback with a folder of its own; a context manager.

    Args:
        folder: Holds its configuration, data and log.
        targets: Addresses to fetch from, as `HOST:PORT`.
        every_s: Seconds between two looks.
        instead: Parts of the rules and what they become: each threshold that a test has no time
            for. Without any `for` is as it stands, else every alert fires at once.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str],
        every_s: int = 5,
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder / "prometheus"
        self.folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        rules = re.sub(r"interval: \d+s", f"interval: {every_s}s", RULES.read_text())
        if instead:
            rules = re.sub(r"^ +for: \w+\n", "", rules, flags=re.M)
        for old, new in (instead or {}).items():
            assert rules.count(old) == 1, old
            rules = rules.replace(old, new)
        (self.folder / "rules.yaml").write_text(rules)
        job = {"job_name": "ray", "static_configs": [{"targets": list(targets)}]}
        # A busy machine answers late: it has the whole interval.
        names = ("scrape_interval", "scrape_timeout", "evaluation_interval")
        timing = dict.fromkeys(names, f"{every_s}s")
        config = {"global": timing, "rule_files": ["rules.yaml"], "scrape_configs": [job]}
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None
        self.began = time.time()

    def __enter__(self) -> "PrometheusServer":
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self.folder}/prometheus.yaml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        self.began = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.uri}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _ask(self, path: str, **given: object) -> Any:
        url = f"{self.uri}/api/v1/{path}?{urllib.parse.urlencode(given)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    def query(self, expression: str) -> dict[str, float]:
        """What an expression gives now, by its labels as a text."""
        found = {}
        for each in self._ask("query", query=expression):
            labels = ", ".join(f"{key}={value}" for key, value in sorted(each["metric"].items()))
            found[labels] = float(each["value"][1])
        return found

    def unanswered(self, asked: Iterable[str]) -> list[str]:
        """Expressions that gave no value at any time since the start."""
        times = {"start": self.began, "end": time.time(), "step": 5}
        return [each for each in asked if not self._ask("query_range", query=each, **times)]

    def fired(self, since: float = 0.0) -> set[str]:
        """Names of the alerts that fired at some time since a Unix time; 0: since the start."""
        times = {"start": max(self.began, since), "end": time.time(), "step": 1}
        found = self._ask("query_range", query='ALERTS{alertstate="firing"}', **times)
        return {each["metric"]["alertname"] for each in found}

    def wait_for(self, alert: str, since: float = 0.0, timeout_s: float = 420) -> float:
        """Waits until an alert has fired since a Unix time; the seconds since then, or since now.

        Args:
            alert: Its name.
            since: When its cause began; 0: it may have fired before.
            timeout_s: How long to wait.
        """
        began = since or time.time()
        while alert not in self.fired(since):
            assert time.time() - began < timeout_s, f"{alert} does not fire: {self.fired()}"
            time.sleep(1)
        return time.time() - began
