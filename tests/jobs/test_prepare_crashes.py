"""Conversions that are killed: as processes of their own, with their own Ray."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.file_reads import FileReads, count_reads
from tests.support.tiny_roots import write_cityscapes

pytestmark = [
    # Each runs the command several times, and a Ray takes about ten seconds to start.
    pytest.mark.slow,
]

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES = 1000
WORKERS = 2
TASK = "ray::_Worker.work"
"""The title of a worker process while it converts a unit."""


class Job:
    """The command, running in a session of its own as under a terminal or a scheduler."""

    def __init__(self, root: Path, out: Path, per_shard: int) -> None:
        command = [sys.executable, str(REPOSITORY / "jobs/prepare_shards.py")]
        command += [f"--roots.cityscapes={root}", f"--out={out}", f"--workers={WORKERS}"]
        command += [f"--samples_per_shard={per_shard}"]
        self._log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                # A test run in the background ignores this signal, and its children with it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def text(self) -> str:
        return self._log.read_text()

    def family(self) -> list[psutil.Process]:
        """The command and everything that it has started."""
        return [psutil.Process(self.process.pid), *self.process.children(recursive=True)]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a moment in the middle of the run."""
        while not condition():
            assert self.process.poll() is None, f"ended too early:\n{self.text}"
            time.sleep(0.0005)

    def finish(self) -> int:
        return self.process.wait(timeout=300)


def assert_all_gone(family: list[psutil.Process], timeout_s: float = 180) -> None:
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"left running: {alive}"


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crashes") / "city"
    write_cityscapes(root, num_train=NUM_IMAGES, num_val=0, size=(192, 384))
    return root


@pytest.fixture
def reads(root: Path) -> Iterator[FileReads]:
    folders = root / "leftImg8bit/train/aachen", root / "gtFine/train/aachen"
    with count_reads(*folders) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> Callable[[int], dict[str, bytes]]:
    """The files of a run that nothing happens to, by samples a shard."""
    made: dict[int, dict[str, bytes]] = {}

    def make(per_shard: int) -> dict[str, bytes]:
        if per_shard not in made:
            out = root.with_name(f"undisturbed-{per_shard}")
            job = Job(root, out, per_shard)
            assert job.finish() == 0, job.text
            made[per_shard] = contents(out)
            assert len(made[per_shard]) == NUM_IMAGES // per_shard + 1
        return made[per_shard]

    return make


def test_sigkill_at_three_random_moments_costs_less_than_a_shard_a_worker(
    root, tmp_path, reads, undisturbed
):
    per_shard, kills = 25, 3
    wanted = undisturbed(per_shard)
    before = {ending: reads.total(ending) for ending in ("_leftImg8bit.png", "_labelIds.png")}
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    out = tmp_path / "out"
    for _ in range(kills):
        job = Job(root, out, per_shard)
        # So many images are read before the kill; the three together leave a rest to be done.
        moment = reads.total("_leftImg8bit.png") + rng.randrange(1, NUM_IMAGES // kills - per_shard)
        job.wait_until(lambda at=moment: reads.total("_leftImg8bit.png") >= at)
        family = job.family()
        os.killpg(job.process.pid, signal.SIGKILL)
        # Without this, workers live on for a second or so, and finish their shards.
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        job.finish()
        assert_all_gone(family)
        assert not list(out.rglob("manifest.json"))
    finished = len(list(out.rglob("*.tar.json")))
    assert 0 < finished < NUM_IMAGES // per_shard
    job = Job(root, out, per_shard)
    assert job.finish() == 0, job.text
    assert f"{finished} of {NUM_IMAGES // per_shard} shards finished by an earlier run" in job.text
    assert "took over the lock" in job.text
    assert contents(out) == wanted
    for ending, start in before.items():
        again = reads.total(ending) - start - NUM_IMAGES
        print(f"{ending}: {again} of {NUM_IMAGES} read again after {kills} kills")
        assert 0 < again < kills * WORKERS * per_shard


def test_a_killed_worker_costs_its_unit_alone(root, tmp_path, reads, undisturbed):
    per_shard = 250
    wanted = undisturbed(per_shard)
    start = reads.total("_leftImg8bit.png")
    job = Job(root, tmp_path / "out", per_shard)
    job.wait_until(lambda: reads.total("_leftImg8bit.png") - start >= per_shard // 2)
    victim = next(p for p in job.family() if p.name() == TASK or TASK in " ".join(p.cmdline()))
    victim.kill()
    assert job.finish() == 0, job.text
    assert contents(tmp_path / "out") == wanted
    again = reads.total("_leftImg8bit.png") - start - NUM_IMAGES
    assert 0 < again <= per_shard


@pytest.mark.long
def test_a_unit_that_always_kills_its_worker_is_named(root, tmp_path, reads):
    job = Job(root, tmp_path / "out", NUM_IMAGES)
    family: set[psutil.Process] = set()
    killed, seen = 0, reads.total("_leftImg8bit.png")
    while job.process.poll() is None:
        time.sleep(0.05)
        with suppress(psutil.NoSuchProcess):
            current = job.family()
            family.update(current)
            # As a picture would that fills the memory: only workers that are at the unit.
            if reads.total("_leftImg8bit.png") == seen:
                continue
            for process in current:
                if TASK in " ".join(process.cmdline()):
                    process.kill()
                    process.wait(10)
                    killed += 1
            seen = reads.total("_leftImg8bit.png")
    assert job.finish() == 2, job.text
    assert killed == 4
    assert "error: cityscapes-train-000000.tar: their workers died 4 times" in job.text
    assert "Traceback" not in job.text
    assert_all_gone(list(family))


@pytest.mark.long
def test_what_ray_has_started_ends_with_a_killed_command(root, tmp_path, reads):
    start = reads.total("_leftImg8bit.png")
    job = Job(root, tmp_path / "out", 25)
    job.wait_until(lambda: reads.total("_leftImg8bit.png") - start >= 30)
    family = job.family()
    assert len(family) > 3
    job.process.kill()
    job.finish()
    # Ray's agents look after their parent only now and then.
    assert_all_gone(family, timeout_s=240)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_and_keeps_what_is_done(
    root, tmp_path, reads, undisturbed, number, code
):
    per_shard = 25
    wanted = undisturbed(per_shard)
    start = reads.total("_leftImg8bit.png")
    out = tmp_path / "out"
    job = Job(root, out, per_shard)
    job.wait_until(lambda: reads.total("_leftImg8bit.png") - start >= 6 * per_shard)
    family = job.family()
    if number == signal.SIGINT:  # Ctrl-C reaches the whole group.
        os.killpg(job.process.pid, number)
    else:
        job.process.send_signal(number)
    assert job.finish() == code, job.text
    assert_all_gone(family)
    assert "of 40 shards are finished and kept" in job.text
    assert "Traceback" not in job.text
    assert not (out / "prepare.lock").exists()
    assert list(out.rglob("*.tar.json"))
    assert Job(root, out, per_shard).finish() == 0
    assert contents(out) == wanted


@pytest.mark.long
def test_a_second_run_on_the_same_output_is_refused(root, tmp_path, reads, undisturbed):
    per_shard = 25
    wanted = undisturbed(per_shard)
    start = reads.total("_leftImg8bit.png")
    out = tmp_path / "out"
    first = Job(root, out, per_shard)
    first.wait_until(lambda: reads.total("_leftImg8bit.png") - start >= per_shard)
    second = subprocess.run(first.process.args, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"error: out={out}: another run is writing there" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.finish() == 0, first.text
    assert contents(out) == wanted
