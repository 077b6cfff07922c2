"""The same weights whatever happens on the way.

    python -m tests.integration.same_weights [--steps 200] [--out DIR] [--only killed ...]
        [--precision fp32] [--head cost]

Trains a tiny LSeg on the mini-seven several times and compares the order of the samples and the
weights with those of an undisturbed run: with a worker killed (SIGKILL) twice; stopped by `ray job
stop` on a real head node and submitted again; stopped by SIGTERM and resumed by another number of
workers. Prints one line each; exit code 1 if a line does not hold.

By default in fp64. Sums over other numbers of workers are rounded otherwise, and training amplifies
any difference: in fp32 undisturbed runs of 2 and 3 workers are 1e-7 apart after 8 steps and 1e-3
after 32, which would hide a state that is restored a little wrong.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from jobs.local_ray import require_token
from tests.integration.training_runs import (
    MODELS,
    REPORT_S,
    REPOSITORY,
    Process,
    compare,
    environment,
    terminate,
    train,
    write_recipe,
    write_shards,
)

SAME = 1e-6
"""Largest difference of a weight between runs of the same number of workers."""
SAME_ACROSS_WORKERS = {"fp32": 1e-4, "fp64": 1e-6}
"""Of a tensor, relative to its norm, by precision."""


class Comparison:
    """The runs of one call, below one folder."""

    def __init__(self, folder: Path, steps: int, precision: str, head: str = "dot") -> None:
        shards, folder = shards_below(folder), folder / f"{head}-{precision}"
        self.runs, self.steps, self.precision = folder / "runs", steps, precision
        self.every = max(2, steps // 10)
        self.recipe = write_recipe(folder, shards, steps, self.every, precision, head=head)
        self.failed = False

    def undisturbed(self) -> None:
        """The run that all others are compared with."""
        if not (self.runs / "undisturbed" / f"step_{self.steps:08d}").is_dir():
            self._finish(train(self.recipe, "undisturbed"))

    def killed(self) -> None:
        """A worker is killed twice."""
        process = train(self.recipe, "killed")
        for part in (1, 2):
            process.wait_for_step(self.steps * part // 3)
            kill = process.kill_worker()
            print(
                f"killed      SIGKILL after step {kill.step}: went on at step {kill.resumed_at}, "
                f"{kill.lost} steps lost (checkpoints every {self.every}, {kill.late} steps in the "
                f"last {REPORT_S:g} s), "
                f"{kill.seconds:.1f} s from the kill to the next step",
                flush=True,
            )
            # A checkpoint is on its way while the next steps are made, and a kill just then costs
            # the interval before it too.
            self.failed |= kill.lost > self.every + kill.late
        self._finish(process)
        self._report("killed")

    def job_stopped(self) -> None:
        """`ray job stop` on a real head node, and the same submission again."""
        with head_node() as (address, env):
            name = "job_stopped"
            submission, process = self._submit(address, env, name)
            process.wait_for_step(self.steps // 2)
            began = time.monotonic()
            command = ["ray", "job", "stop", "--address", address, submission]
            subprocess.run(_ray(command), check=True, capture_output=True, env=env, timeout=120)
            seconds = time.monotonic() - began
            stored = sorted(path.name for path in (self.runs / name).glob("step_*"))
            print(
                f"job_stopped ray job stop after step {process.step}: checkpoint {stored[-1]}, "
                f"{seconds:.1f} s",
                flush=True,
            )
            self.failed |= int(stored[-1].removeprefix("step_")) < process.step
            self._finish(self._submit(address, env, name)[1])
        self._report("job_stopped")

    def other_workers(self) -> None:
        """Stopped by SIGTERM at half the way, resumed by three workers instead of two."""
        process = train(self.recipe, "other_workers")
        process.wait_for_step(self.steps // 2)
        terminate(process)
        assert process.wait() == 143, "\n".join(process.lines[-40:])
        print(f"other_workers  {process.lines[-1]}", flush=True)
        self._finish(train(self.recipe, "other_workers", "--cluster.num_workers", "3"))
        self._report("other_workers", across=True)

    def _submit(self, address: str, env: dict[str, str], name: str) -> tuple[str, Process]:
        submission = f"{name}-{time.monotonic_ns()}"
        command = ["ray", "job", "submit", "--address", address, "--submission-id", submission]
        command += ["--working-dir", ".", "--runtime-env-json"]
        command += ['{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}', "--"]
        command += [sys.executable, "jobs/train_mix.py", "--config", str(self.recipe)]
        return submission, Process.start(_ray([*command, "--run.name", name]), env)

    def _finish(self, process: Process) -> None:
        if process.wait() != 0:
            raise RuntimeError("\n".join(process.lines[-60:]))

    def _report(self, name: str, across: bool = False) -> None:
        found = compare(self.runs, "undisturbed", name, self.steps)
        near = (
            found.relative <= SAME_ACROSS_WORKERS[self.precision]
            if across
            else found.absolute <= SAME
        )
        holds = found.same_order and near
        self.failed |= not holds
        print(
            f"{name:13}  same sample order: {'yes' if found.same_order else 'NO'}; largest "
            f"difference of a weight {found.absolute:.2e}, of a tensor {found.relative:.2e} of its "
            f"norm, of all weights {found.overall:.2e}: {'ok' if holds else 'NOT REACHED'}",
            flush=True,
        )


def _ray(command: list[str]) -> list[str]:
    """The `ray` command of this Python's environment."""
    return [str(Path(sys.executable).with_name("ray")), *command[1:]]


def shards_below(folder: Path) -> Path:
    """Shards of the mini-seven in a folder, made where there are none yet."""
    import ray

    if (folder / "shards").is_dir():
        return folder / "shards"
    if ray.is_initialized():  # By the tests around.
        return write_shards(folder)
    require_token()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        return write_shards(folder)
    finally:
        ray.shutdown()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def head_node(
    port: int = 0, metrics: int = 0, **variables: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own, with ports of its own: (dashboard address, environment)."""
    more = free_ports(2)
    env = environment(**variables)
    with tempfile.TemporaryDirectory(prefix="lsr-") as temporary:
        dashboard, process = _start_head(port or more[0], metrics or more[1], env, temporary)
        try:
            yield f"http://127.0.0.1:{dashboard}", env
        finally:
            _end(process, temporary)


def _start_head(
    port: int, metrics: int, env: dict[str, str], temporary: str
) -> tuple[int, Process]:
    """The port of its dashboard, and its process.

    Ray gives a node 30 s to start, which a busy machine may not have: it is tried again.
    """
    for left in (2, 1, 0):
        dashboard, client, agent, agent_grpc = free_ports(4)
        command = ["ray", "start", "--head", "--block", "--num-cpus", "4"]
        command += ["--port", str(port), "--metrics-export-port", str(metrics)]
        command += ["--ray-client-server-port", str(client)]
        command += ["--dashboard-port", str(dashboard), "--temp-dir", temporary]
        command += ["--dashboard-agent-listen-port", str(agent)]
        command += ["--dashboard-agent-grpc-port", str(agent_grpc), "--disable-usage-stats"]
        process = Process.start(_ray(command), env)
        try:
            _wait_for_head(dashboard, process)
            return dashboard, process
        except BaseException as error:
            _end(process, temporary)
            if not left or not isinstance(error, RuntimeError):
                raise
    raise AssertionError("the last attempt returns or raises")


def _end(head: Process, temporary: str) -> None:
    """Ends a head node and all that it started, which a start that failed would leave behind."""
    head.popen.terminate()
    head.wait(60)
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if any(temporary in word for word in each.cmdline()):
                each.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for_head(dashboard: int, head: Process, timeout_s: float = 400) -> None:
    """Waits for the node itself, which joins after its dashboard answers."""
    deadline = time.monotonic() + timeout_s
    while not (_answers(dashboard) and any("Ray runtime started" in line for line in head.lines)):
        if head.popen.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the head node does not answer:\n" + "\n".join(head.lines[-40:]))
        time.sleep(0.5)


def main(argv: list[str] | None = None) -> int:
    """Runs the scenarios and prints the figures."""
    scenarios = ("killed", "job_stopped", "other_workers")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=scenarios, default=scenarios)
    parser.add_argument("--precision", choices=("fp32", "fp64"), default="fp64")
    parser.add_argument("--head", choices=MODELS, default="dot")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="same-weights-") as temporary:
        folder = (given.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(folder, given.steps, given.precision, given.head)
        comparison.undisturbed()
        for name in given.only:
            getattr(comparison, name)()
    return int(comparison.failed)


if __name__ == "__main__":
    assert (REPOSITORY / "jobs").is_dir()
    sys.exit(main())
