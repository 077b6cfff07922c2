"""What an MLflow server that does not answer costs a training: no time and no metric.

    python -m tests.integration.mlflow_faults [--seconds 9] [--cycles 9] [--out DIR]

One run of a tiny LSeg, whose server is refused from the start, then answers, is frozen (SIGSTOP of
all its processes) in the middle, killed and started again, and is dead when the run is stopped.
Each stretch lasts `--seconds`; freezing and killing are repeated `--cycles` times. The time of a
step is what the worker measures, read from the metrics once `jobs/track.py --replay` has sent
what the server missed; a stretch is compared with the healthy ones before and after it. Prints one
line each; exit code 1 if the steps of a kind of fault take over 5 % more time together, one of them
waits for a call to the server, or a metric is lost.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.same_weights import shards_below
from tests.integration.training_runs import (
    BATCH,
    REPOSITORY,
    Process,
    environment,
    terminate,
    train,
    write_recipe,
)
from tests.support.mlflow_server import MlflowServer

NAME = "mlflow_faults"
LIMIT = 1.05
"""Time of a step with a fault, relative to without."""
NO_CALL_WAITED_S = 4.0
"""A call to a frozen server ends after 5 s: a step that waited for one would take longer."""
SETTLE_S = 3.0
"""Not counted after a change: log lines reach this process a little later than they are written."""


@dataclass(frozen=True)
class Stretch:
    """Some steps in a row during which the server was in one state."""

    state: str
    first: int
    last: int


@dataclass
class Faults:
    """What was found."""

    step_s: dict[int, float]
    """Seconds of each step."""
    stretches: list[Stretch]
    missing: list[int] = field(default_factory=list)
    """Steps without a metric in MLflow at the end."""
    twice: list[int] = field(default_factory=list)
    """Steps that are there more than once."""
    replayed: str = ""
    """What `jobs/track.py --replay` said."""

    def median_s(self, stretch: Stretch) -> float:
        """Median time of a step: what the machine is busy with else does not move it much."""
        return statistics.median(self._seconds(stretch))

    def share(self, state: str) -> float:
        """Mean time of all steps in a state, to that of the healthy stretches beside them."""
        there, healthy = [], []
        for number, stretch in enumerate(self.stretches):
            if stretch.state == state:
                there += self._seconds(stretch)
                for beside in self.stretches[max(number - 1, 0) : number + 2]:
                    if beside.state == "healthy":
                        healthy += self._seconds(beside)
        return statistics.mean(there) / statistics.mean(healthy)

    def longest_s(self, state: str) -> float:
        """The longest step in a state of the server."""
        return max(max(self._seconds(s)) for s in self.stretches if s.state == state)

    def ratios(self, state: str) -> list[float]:
        """The ratio of each stretch with a fault to the healthy ones beside it."""
        found = []
        for number, stretch in enumerate(self.stretches):
            if stretch.state != state:
                continue
            beside = self.stretches[max(number - 1, 0) : number + 2]
            healthy = [self.median_s(s) for s in beside if s.state == "healthy"]
            found.append(self.median_s(stretch) / statistics.mean(healthy))
        return found

    def noise(self) -> float:
        """The largest ratio of two neighbouring healthy stretches: what the machine itself does."""
        healthy = [self.median_s(s) for s in self.stretches if s.state == "healthy"]
        pairs = itertools.pairwise(healthy)
        return max((max(a, b) / min(a, b) for a, b in pairs), default=1.0)

    def _seconds(self, stretch: Stretch) -> list[float]:
        return [self.step_s[step] for step in range(stretch.first, stretch.last + 1)]


def run_faults(folder: Path, seconds: float, cycles: int) -> Faults:
    """Makes all of it happen to one run.

    Args:
        folder: Holds shards (made if missing), the run and the server's files.
        seconds: Length of a stretch.
        cycles: How often the server is frozen and killed.
    """
    recipe = write_recipe(folder, shards_below(folder), steps=100_000, every=100_000)
    server = MlflowServer(folder)
    process = train(recipe, NAME, "--tracking.uri", server.uri)
    stretches: list[Stretch] = []

    def stretch(state: str) -> None:
        time.sleep(SETTLE_S)
        first = process.step + 1
        time.sleep(seconds)
        process.wait_for_step(first + 2)
        stretches.append(Stretch(state, first, process.step))

    try:
        process.wait_for_step(20)
        stretch("refused")
        server.start()
        stretch("healthy")
        for _ in range(cycles):
            server.freeze()
            stretch("frozen")
            server.thaw()
            stretch("healthy")
        for _ in range(cycles):
            server.kill()
            stretch("killed")
            server.start()
            stretch("healthy")
        server.kill()
        stretch("dead at the end")
        terminate(process)
        if process.wait() != 143:
            raise RuntimeError("\n".join(process.lines[-60:]))
        server.start()
        replayed = _replay(folder, server)
        return _collected(server, process, stretches, replayed)
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
        server.kill()


def _replay(folder: Path, server: MlflowServer) -> str:
    """Sends what lies beside the checkpoints, as the message of training asks for."""
    (spill,) = (folder / "runs" / NAME).glob("tracking-*.jsonl")
    command = [sys.executable, "jobs/track.py", "--replay", str(spill)]
    done = subprocess.run(
        [*command, "--tracking.uri", server.uri],
        cwd=REPOSITORY,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert not spill.exists()
    return done.stdout.strip()


def _collected(
    server: MlflowServer, process: Process, stretches: list[Stretch], replayed: str
) -> Faults:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/images_per_s")
    steps = sorted(metric.step for metric in history)
    return Faults(
        {metric.step: BATCH / metric.value for metric in history},
        stretches,
        missing=sorted(set(range(1, process.step + 1)) - set(steps)),
        twice=[a for a, b in itertools.pairwise(steps) if a == b],
        replayed=replayed,
    )


def report(faults: Faults) -> bool:
    """Prints the figures; whether all of them hold."""
    healthy = [s for s in faults.stretches if s.state == "healthy"]
    median = statistics.median(faults.median_s(s) for s in healthy)
    print(f"healthy          {1000 * median:.1f} ms a step; neighbouring healthy stretches differ "
          f"by up to {100 * (faults.noise() - 1):.1f} %")  # fmt: skip
    holds = True
    for state in dict.fromkeys(s.state for s in faults.stretches if s.state != "healthy"):
        share, ratios = faults.share(state), faults.ratios(state)
        reached = share <= LIMIT and faults.longest_s(state) < NO_CALL_WAITED_S
        holds &= reached
        shown = ", ".join(f"{100 * (r - 1):+.1f}" for r in ratios)
        print(f"{state:16} {100 * (share - 1):+.1f} % in all, {len(ratios)} stretches, median "
              f"{100 * (statistics.median(ratios) - 1):+.1f} % ({shown}); longest step "
              f"{faults.longest_s(state):.2f} s: {'ok' if reached else 'NOT REACHED'}")  # fmt: skip
    whole = not faults.missing and not faults.twice
    print(f"metrics          {len(faults.step_s)} steps, {len(faults.missing)} missing, "
          f"{len(faults.twice)} twice: {'ok' if whole else 'LOST'}")  # fmt: skip
    print(f"replay           {faults.replayed}")
    return holds and whole


def main(argv: list[str] | None = None) -> int:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=9.0)
    parser.add_argument("--cycles", type=int, default=9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mlflow-faults-") as temporary:
        folder = (given.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return int(not report(run_faults(folder, given.seconds, given.cycles)))


if __name__ == "__main__":
    sys.exit(main())
