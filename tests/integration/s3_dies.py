"""Lets the S3 server die in the middle of each job, and the same command go on when it is back.

    python -m tests.integration.s3_dies prepare evaluate --points 3

The server stands behind a proxy that resets every connection after so many requests of a kind; for
a dead server that means one message and exit code 2. Jobs run as in `write_points`.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load

from jobs.local_s3 import local_s3
from pipeline.storage import s3
from pipeline.storage.open import open_storage
from tests.integration import write_jobs
from tests.integration.write_jobs import STEPS, Job, checkpoint_of
from tests.integration.write_points import World, spread, world
from tests.support.fault_proxy import WRITES, FaultProxy, fault_proxy

BUCKET = "s3://lseg"
ATTEMPTS = "LSEG_TEST_S3_ATTEMPTS"
"""Variable by which the processes of a job ask a dead server so often; else it takes a minute."""
_ALIVE = 1 << 40


@dataclass(frozen=True)
class Task:
    """A job, and which requests of it are counted."""

    job: Job
    methods: tuple[str, ...] = WRITES


def _contents(place: Path) -> dict[str, bytes]:
    storage = open_storage(f"{BUCKET}/{place.name}")
    found = {entry.path: storage.read(entry.path) for entry in storage.list()}
    return {path: data for path, data in found.items() if not path.endswith(".lock")}


def _trained(place: Path) -> object:
    storage = open_storage(f"{BUCKET}/{place.name}/runs/one/step_{STEPS:08d}")
    tensors = load(storage.read("model.safetensors"))
    weights = {name: float(t.double().norm()) for name, t in sorted(tensors.items())}
    return weights, storage.read("order.txt"), sorted(entry.path for entry in storage.list())


def _upload_run(folder: Path, place: Path) -> None:
    if (place / "runs").exists():
        return
    write_jobs._with_run(folder, place)
    storage = open_storage(f"{BUCKET}/{place.name}")
    for path in checkpoint_of(folder).iterdir():
        storage.upload(f"checkpoint/{path.name}", path)


def _to_s3(name: str, folder: Path, place: Path, local: str, there: str) -> list[str]:
    """The words of a job of `write_points`, with one place in S3."""
    words = write_jobs.JOBS[name].words(folder, place)
    return [word.replace(f"{place}/{local}", f"{BUCKET}/{place.name}/{there}") for word in words]


def _words(name: str, local: str, there: str) -> Callable[[Path, Path], list[str]]:
    return lambda folder, place: _to_s3(name, folder, place, local, there)


TASKS: dict[str, Task] = {
    "prepare": Task(Job(_words("prepare", "out", "out"), _contents)),
    "evaluate": Task(
        Job(
            _words("evaluate", "out", "out"),
            lambda place: sorted(_contents(place)),
            write_jobs.JOBS["evaluate"].prepare,
        )
    ),
    "registry": Task(
        Job(
            _words("registry", f"runs/one/step_{STEPS:08d}", "checkpoint"),
            write_jobs.JOBS["registry"].result,
            _upload_run,
        ),
        ("GET", "HEAD"),
    ),
    "train": Task(Job(_words("train", "runs", "runs"), _trained)),
}


def try_dying(made: World, proxy: FaultProxy, name: str, points: int) -> list[str]:
    """Tries a job's points; what is wrong."""
    task, place = TASKS[name], made.folder / f"dies-{name}"

    def run(to: Path, after: int) -> str:
        to.mkdir(parents=True, exist_ok=True)
        task.job.prepare(made.folder, to)  # While the server lives.
        proxy.requests.clear()
        proxy.counted, proxy.dies_after = task.methods, after
        ended = made.run(task.job, to)
        proxy.dies_after = _ALIVE
        return ended.problem([0 if after == _ALIVE else 2])

    if problem := run(place, _ALIVE):
        raise RuntimeError(f"undisturbed: {problem}")
    number, wanted = sum(proxy.requests[m] for m in task.methods), task.job.result(place)
    print(f"{name}: {number} requests ({', '.join(task.methods)})", flush=True)
    wrong = []
    for after in [at - 1 for at in spread(number, points)]:
        there = made.folder / f"dies-{name}-{after}"
        problem = run(there, after)
        if not problem and (problem := run(there, _ALIVE)):
            problem = f"the same command again: {problem}"
        if not problem and task.job.result(there) != wanted:
            problem = "afterwards the result differs"
        if problem:
            wrong.append(f"    dead after {after}: {problem}")
            print(wrong[-1], flush=True)
    print(f"{name}: tried {min(points, number)}: {len(wrong)} wrong", flush=True)
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Runs the jobs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", nargs="+", choices=[*TASKS, "all"])
    parser.add_argument("--points", type=int, default=2, help="A spread of so many.")
    parser.add_argument("--folder", type=Path, help="Keeps the world for the next call.")
    given = parser.parse_args(argv)
    names = list(TASKS) if "all" in given.job else given.job
    os.environ[ATTEMPTS] = "1"
    s3._ATTEMPTS = 1
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dies-")))
        os.environ |= {"HOME": str(temporary), "AWS_MAX_ATTEMPTS": "2"}
        direct = stack.enter_context(local_s3(temporary / "s3", ("lseg",)))
        proxy = stack.enter_context(fault_proxy(direct, seed=1))
        proxy.dies_after = _ALIVE
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint  # Before Ray, whose workers inherit it.
        made = stack.enter_context(world(given.folder or temporary / "world"))
        wrong = [line for name in names for line in try_dying(made, proxy, name, given.points)]
    print(f"{len(wrong)} wrong" if wrong else "ok")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
