"""What a pod of a cluster does before it ends (preStop), so that a training loses no step.

    python infra/before_stop.py leave [--notice_s 100] [--wait_s 110]      in a pod of workers
    python infra/before_stop.py stop_jobs [--wait_s 130]                   in the pod of the head

`leave` tells Ray that this node is about to go, which calls for a checkpoint, and stays until no
training worker runs here any more. `--notice_s`, by default LSEG_NOTICE_S, is how long the platform
leaves a pod whose node is taken away: after it Ray counts the node as gone. A pod does not know why
it ends. Where LSEG_PREEMPTED_URL is set, what answers there does: if it says FALSE, the node stays
and the pod alone is deleted, which leaves it `--deleted_s`. `stop_jobs` stops what runs on the
cluster, as `ray job stop` does, and stays until it has ended: suspending or deleting a RayJob ends
all of its pods at once.
"""

import argparse
import http.client
import os
import sys
import time
import urllib.request
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.ray_internals import TRAIN_WORKER_TITLE, announce_end_of_node, raylet_options

_DASHBOARD = "http://127.0.0.1:8265"
_LOOK_EVERY_S = 0.5
_ANSWER_WITHIN_S = 1.0  # Of the few seconds that a node may have.


def node_stays(url: str) -> bool:
    """Whether the platform says that this node is not taken away; without an answer it may be."""
    # The address is the node's own: no proxy knows it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with opener.open(request, timeout=_ANSWER_WITHIN_S) as answer:
            return answer.read(16).strip() == b"FALSE"
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"{url}: does not say whether this node goes: {error}", flush=True)
        return False


def leave(notice_s: float, wait_s: float) -> None:
    """Announces the end of this node, and returns when no training worker is left on it."""
    session = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray")
    raylets = [
        options
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "raylet"
        and (options := raylet_options(process.info["cmdline"]))
        and Path(options["session_dir"]).is_relative_to(session)
    ]
    if not raylets:
        return  # Ray has not started, or has ended.
    options = raylets[0]
    try:
        announce_end_of_node(
            options["gcs-address"], options["node_id"], "the pod is about to end", notice_s
        )
    except Exception as error:  # The head goes at the same time, where a whole cluster ends.
        print(f"node {options['node_id']}: its end cannot be announced: {error}", flush=True)
        return
    print(f"node {options['node_id']}: announced that it goes in {notice_s:g} s", flush=True)
    give_up = time.monotonic() + wait_s
    while time.monotonic() < give_up and _trains():
        time.sleep(_LOOK_EVERY_S)


def _trains() -> bool:
    """Whether a training worker of this user runs here, where a pod sees its own processes."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        words = process.info["cmdline"] or [""]
        mine = process.info["uids"] and process.info["uids"].real == os.getuid()
        if mine and words[0].startswith(TRAIN_WORKER_TITLE):
            return True
    return False


def stop_jobs(address: str, wait_s: float) -> None:
    """Stops all jobs of the cluster, and returns when each has ended."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)

    def running() -> list[str]:
        names = ((job.submission_id, job.status) for job in client.list_jobs())
        return [name for name, status in names if name and not status.is_terminal()]

    for job in running():
        try:
            client.stop_job(job)
            print(f"job {job}: asked to stop", flush=True)
        except Exception as error:  # It has just ended, say; the others must hear of it too.
            print(f"job {job}: cannot be asked to stop: {error}", flush=True)
    give_up = time.monotonic() + wait_s
    while time.monotonic() < give_up and running():
        time.sleep(_LOOK_EVERY_S)


def main() -> None:
    """Does what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("action", choices=["leave", "stop_jobs"])
    parser.add_argument("--notice_s", type=float, default=os.environ.get("LSEG_NOTICE_S", "100"))
    parser.add_argument("--deleted_s", type=float, default=100.0)
    parser.add_argument("--wait_s", type=float, default=110.0)
    parser.add_argument("--address", default=_DASHBOARD, help="The dashboard, for stop_jobs.")
    given = parser.parse_args()
    if given.action == "leave":
        notice_s, url = given.notice_s, os.environ.get("LSEG_PREEMPTED_URL")
        if url and node_stays(url):
            notice_s = max(notice_s, given.deleted_s)
        leave(notice_s, given.wait_s)
    else:
        stop_jobs(given.address, given.wait_s)


if __name__ == "__main__":
    main()
