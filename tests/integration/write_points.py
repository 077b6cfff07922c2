"""Kills each job at its writes, one after the other, and lets the same command go on.

    python -m tests.integration.write_points predict --folder /tmp/points
    python -m tests.integration.write_points prepare --points 8 --kinds kill empty ENOSPC

First the job runs undisturbed, and its writes are counted. Then, for each point and each kind of
fault (`tests/support/write_faults.py`), it runs in a folder of its own and is killed or refused at
that write; an error must end in one message and exit code 2. The same command afterwards must
finish with the same result. Jobs run as a user starts them, in processes that are forked from one
that has loaded the libraries, on one Ray.
"""

import argparse
import contextlib
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from jobs.local_ray import require_token
from pipeline.demo.layouts import write_mini_seven
from tests.integration.training_runs import REPOSITORY, recipe_text
from tests.integration.write_jobs import JOBS, STEPS, Job
from tests.support import write_faults
from tests.support.mini_shards import paint_vectors

RUN_S = 240
"""Seconds after which a run that does not end is a failure."""


@dataclass(frozen=True)
class Ended:
    """How a run of a job ended."""

    code: int
    """Exit code; minus the signal of one that was killed, -99 of one that did not end."""
    log: Path
    """The file of all that it printed."""

    def problem(self, expected: Sequence[int]) -> str:
        """What is wrong with the end; empty if nothing is."""
        if self.code not in expected:
            return f"exit code {self.code} instead of {expected}: {self.last}"
        # Ray prints those of its workers, after their names.
        if re.search(r"(?m)^Traceback", self.text) and self.code != 0:
            return f"a traceback: {self.last}"
        if self.code == 2 and len(re.findall(r"(?m)^error: ", self.text)) != 1:
            return f"not one message: {self.last}"
        return ""

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")

    @property
    def last(self) -> str:
        """The last line, and where the others are."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else 'no word'} (in {self.log.name})"


@dataclass
class World:
    """The data that the jobs work on, below a folder, and the Ray that they run on."""

    folder: Path
    faults: Path
    env: dict[str, str]
    holding: int
    """The end of a pipe: the Ray lives while it is open in any process."""
    runs: int = 0
    running: set[int] = field(default_factory=set)
    """Processes of jobs."""

    def make(self) -> None:
        """Writes images, shards, a recipe and a checkpoint, unless they are there."""
        if (self.folder / "made").is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_mini_seven(self.folder / "raw", paint_vectors(), 5, 6, 2, ("cityscapes",))
        images = sorted((self.folder / "raw").rglob("*leftImg8bit.png"))[:3]
        (self.folder / "photos").mkdir(exist_ok=True)
        for number, path in enumerate(images):
            shutil.copy(path, self.folder / f"photos/{number}.png")
        text = recipe_text("runs", self.folder / "shards", STEPS, every=2, batch=4)
        text = text.replace("num_workers: 2", "num_workers: 1, max_failures: 0")
        text = text.replace("steps: 5", "steps: 1\n  storage_patience_s: 3")
        (self.folder / "recipe.yaml").write_text(text)
        for name in ("prepare", "train"):
            place = self.folder / f"made-{name}"
            shutil.rmtree(place, ignore_errors=True)
            ended = self.run(JOBS[name], place)
            if ended.code:
                raise RuntimeError(f"{name}: {ended.text[-3000:]}")
            if name == "prepare":
                shutil.copytree(place / "out", self.folder / "shards", dirs_exist_ok=True)
        (self.folder / "made").touch()

    def start(self, job: Job, place: Path) -> tuple[int, Path]:
        """Starts a job in a folder; its process and what it prints."""
        place.mkdir(parents=True, exist_ok=True)
        job.prepare(self.folder, place)
        self.runs += 1
        log = self.folder / f"run-{os.getpid()}-{self.runs}.log"
        process = os.fork()
        if not process:
            os.close(self.holding)
            self._be(job, place, log)
        self.running.add(process)
        return process, log

    def end(self) -> None:
        """Ends the jobs that still run."""
        for process in self.running:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)

    def run(self, job: Job, place: Path) -> Ended:
        """Runs a job to its end."""
        return self.wait(*self.start(job, place))

    def wait(self, process: int, log: Path) -> Ended:
        """Waits for a process, and ends it when it takes too long."""
        deadline = time.monotonic() + RUN_S
        while True:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                self.running.remove(process)
                return Ended(os.waitstatus_to_exitcode(status), log)
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                self.running.remove(process)
                return Ended(-99, log)
            time.sleep(0.05)

    def _be(self, job: Job, place: Path, log: Path) -> None:
        """The child: becomes the job, and never returns."""
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            # Below pytest the streams of Python are its own, and lead elsewhere.
            sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))
            os.environ.update(self.env)
            os.chdir(place)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            write_faults.drive(self.faults)
            write_faults.install()
            name, *words = job.words(self.folder, place)
            sys.argv = [name, *words]
            runpy.run_path(str(REPOSITORY / "jobs" / name), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _keep_ray(told: int, held: int) -> NoReturn:
    """Starts a Ray, and ends it when no process holds the other end of the pipe `held`."""
    import ray

    try:
        # It outlives what ends its parent, and only then ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        context = ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False
        )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(told, context.address_info["address"].encode() + b"\n")
        os.read(held, 1)
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        os._exit(0)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """The world below a folder, and a Ray whose workers know of the faults."""
    with tempfile.TemporaryDirectory(prefix="wf-") as temporary:
        faults = Path(temporary) / "faults"
        env = write_faults.plan(faults, ())
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        env |= {"RAY_USAGE_STATS_ENABLED": "0"}
        before = dict(os.environ)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ.update(env)
        require_token()
        reading, writing = os.pipe()
        held, holding = os.pipe()
        # In a process of its own: what is forked for the jobs must hold no connection.
        keeper = os.fork()
        if not keeper:
            os.close(holding)
            _keep_ray(writing, held)
        os.close(writing)
        os.close(held)
        with os.fdopen(reading) as lines:
            env["RAY_ADDRESS"] = lines.readline().strip()
        made = World(folder.resolve(), faults, env, holding)
        try:
            made.make()
            yield made
        finally:
            made.end()
            os.close(holding)
            os.waitpid(keeper, 0)
            os.environ.clear()
            os.environ.update(before)


@dataclass(frozen=True)
class Failure:
    """A point at which something is wrong."""

    at: int
    kind: str
    write: str
    what: str

    def __str__(self) -> str:
        return f"    write {self.at} ({self.kind}, {self.write}): {self.what}"


def count(world: World, job: Job, place: Path) -> tuple[list[str], object]:
    """The writes of an undisturbed run, and its result."""
    write_faults.plan(world.faults, [place], databases=job.databases)
    ended = world.run(job, place)
    if problem := ended.problem([0]):
        raise RuntimeError(f"undisturbed: {problem}\n{ended.text[-3000:]}")
    written = write_faults.writes(world.faults)
    (world.folder / f"writes-{place.name}.txt").write_text("\n".join(written))
    return written, job.result(place)


def spread(number: int, points: int) -> list[int]:
    """Numbers from 1 on, all of them or as many as are asked for, first and last among them."""
    if points <= 0 or points >= number:
        return list(range(1, number + 1))
    if points == 1:
        return [max(1, number // 2)]
    return sorted({1 + round(i * (number - 1) / (points - 1)) for i in range(points)})


def try_point(
    world: World, job: Job, place: Path, at: int, kind: str, wanted: object
) -> tuple[str, str]:
    """Faults one write; what was hit, and what is wrong afterwards (empty if nothing is)."""
    shutil.rmtree(place, ignore_errors=True)
    write_faults.plan(world.faults, [place], at, kind, job.databases)
    ended = world.run(job, place)
    killing = kind in ("kill", "empty")
    written = write_faults.writes(world.faults)
    hit = " ".join(written[at - 1].split()[2:]) if len(written) >= at else "not reached"
    hit = hit.replace(f"{place}/", "")
    if hit == "not reached":
        expected = [0]
    else:
        expected = [-signal.SIGKILL] if killing else [2, 0]
    if problem := ended.problem(expected):
        return hit, problem
    write_faults.plan(world.faults, [place])
    again = world.run(job, place)
    if problem := again.problem([0]):
        return hit, f"the same command again: {problem}"
    try:
        found = job.result(place)
    except Exception as error:
        return hit, f"afterwards there is no result: {type(error).__name__}: {error}"
    if found != wanted:
        return hit, f"afterwards the result differs: {_difference(found, wanted)}"
    shutil.rmtree(place, ignore_errors=True)
    return hit, ""


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        return f"in {keys[:5]}"
    if isinstance(found, tuple) and isinstance(wanted, tuple):
        pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if f != w]
        return _difference(*pairs[0])
    return f"{str(found)[:300]} instead of {str(wanted)[:300]}"


def try_points(
    world: World, name: str, points: int, kinds: Sequence[str], only: Sequence[int] = ()
) -> list[Failure]:
    """Tries a job's points, and prints what came of it."""
    job = JOBS[name]
    place = world.folder / f"try-{name}"
    shutil.rmtree(place, ignore_errors=True)
    written, wanted = count(world, job, place)
    print(f"{name}: {len(written)} writes", flush=True)
    failures, tried = [], Counter[str]()
    for kind in kinds:
        for at in only or spread(len(written), points):
            hit, problem = try_point(world, job, place, at, kind, wanted)
            tried[kind] += 1
            if problem:
                failures.append(Failure(at, kind, hit, problem))
                print(failures[-1], flush=True)
    counts = ", ".join(f"{kind} {number}" for kind, number in tried.items())
    print(f"{name}: tried {counts}: {len(failures)} wrong", flush=True)
    return failures


def try_two(world: World, name: str) -> str:
    """Starts a job twice at once on one output; what is wrong (empty if nothing is)."""
    job = JOBS[name]
    place = world.folder / f"two-{name}"
    shutil.rmtree(place, ignore_errors=True)
    write_faults.plan(world.faults, [])
    _, wanted = count(world, job, place)
    shutil.rmtree(place)
    started = [world.start(job, place) for _ in range(2)]
    ended = [world.wait(*one) for one in started]
    if all(one.code for one in ended):
        return f"both failed: {ended[0].last}; {ended[1].last}"
    for one in ended:
        if problem := one.problem([0, job.refused]):
            return problem
    if problem := world.run(job, place).problem([0]):
        return f"the same command again: {problem}"
    found = job.result(place)
    return "" if found == wanted else f"the result differs: {_difference(found, wanted)}"


def main(argv: list[str] | None = None) -> int:
    """Runs the points of the jobs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", nargs="+", choices=[*JOBS, "all"])
    parser.add_argument("--points", type=int, default=0, help="A spread of so many; 0: all.")
    parser.add_argument("--at", type=int, nargs="+", default=(), help="Only these writes.")
    parser.add_argument("--kinds", nargs="+", choices=write_faults.KINDS, default=["kill"])
    parser.add_argument("--two", action="store_true", help="Two at once instead.")
    parser.add_argument("--folder", type=Path, help="Keeps the world for the next call.")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that jobs and Ray end too.
    names = list(JOBS) if "all" in given.job else given.job
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="points-") as temporary:
        with world(given.folder or Path(temporary)) as made:
            for name in names:
                if given.two:
                    problem = try_two(made, name)
                    print(f"{name}, two at once: {problem or 'ok'}", flush=True)
                    wrong += bool(problem)
                else:
                    wrong += len(try_points(made, name, given.points, given.kinds, given.at))
    print(f"{wrong} wrong" if wrong else "ok")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
