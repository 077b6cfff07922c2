"""Nodes that come when they are needed: Ray's autoscaler, whose nodes are processes here."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

from tests.integration.same_weights import free_ports
from tests.integration.training_runs import REPOSITORY, environment

RAY = str(Path(sys.executable).with_name("ray"))
JOB = """
import logging, ray
from jobs.cli import start_ray
logging.basicConfig(level=logging.INFO)
start_ray(2, 1)
there = ray.cluster_resources()
print("CPUs:", there["CPU"], "GPUs:", there["GPU"])
"""


@contextmanager
def autoscaling_head(folder: Path) -> Iterator[dict[str, str]]:
    """A head without CPUs, and a node that comes when asked for; the environment of a job on it."""
    port, client, agent, agent_grpc = free_ports(4)
    address = f"{get_node_ip_address()}:{port}"
    node = {"node_config": {}, "min_workers": 0}
    config = {
        "cluster_name": "test",
        "max_workers": 1,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0},
            "worker": {**node, "resources": {"CPU": 2, "GPU": 1}, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
        **{key: [] for key in ("rsync_exclude", "rsync_filter", "setup_commands")},
        **{f"{kind}_setup_commands": [] for kind in ("head", "worker")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
        "file_mounts_sync_continuously": False,
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    env = environment(RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
    # Else a node that starts slowly is taken for dead, and "repaired" by ssh.
    env["AUTOSCALER_HEARTBEAT_TIMEOUT_S"] = "300"
    command = [RAY, "start", "--head", "--block", "--num-cpus", "0", "--port", str(port)]
    command += ["--include-dashboard", "false", "--ray-client-server-port", str(client)]
    command += ["--dashboard-agent-listen-port", str(agent)]
    command += ["--dashboard-agent-grpc-port", str(agent_grpc)]
    command += ["--autoscaling-config", str(folder / "cluster.json"), "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        check = [RAY, "health-check", "--address", address]
        for _ in range(60):
            if subprocess.run(check, env=env, capture_output=True).returncode == 0:
                break
            time.sleep(0.5)
        yield env | {"RAY_ADDRESS": address}
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        _, alive = psutil.wait_procs(processes, timeout=20)
        for process in alive:
            process.kill()


@pytest.mark.long
def test_a_job_gets_the_nodes_that_it_waits_for(tmp_path):
    with autoscaling_head(tmp_path) as env:

        def job(wait_s: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", JOB]
            job_env = env | {"LSEG_CLUSTER_WAIT_S": wait_s}
            return subprocess.run(
                command, env=job_env, capture_output=True, text=True, cwd=REPOSITORY
            )

        without = job("0")
        assert without.returncode == 1
        assert "cluster CPUs=0: this job holds 2 at once" in without.stderr
        waiting = job("120")
        assert "waiting up to 120 s for nodes: 0 of 2 CPUs, 0 of 1 GPUs" in waiting.stderr
        assert waiting.returncode == 0, waiting.stderr
        assert "CPUs: 2.0 GPUs: 1.0" in waiting.stdout.splitlines()  # Ray prints there, too.
