"""Damages files of every kind that is read, many thousand times, and says what came of it.

    python -m tests.benchmarks.fuzz --kind jpeg --count 20000 --seed 1 --out failures

Each file is read in a process that the kernel ends when it takes too long; its memory is limited
and measured. A failing file is kept under its kind, the number of its damage and what went wrong;
the same seed and number make it again. Exits with 1 if anything but the documented exceptions came
out of a reader.
"""

import argparse
import faulthandler
import hashlib
import json
import logging
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch

from tests.support.fuzz_target import MIB, Target
from tests.support.fuzz_targets import KINDS
from tests.support.mutators import mutate

WAIT_S = 60.0
"""Wall time after which a reader that uses no CPU is taken for blocked, as by a FIFO."""
ADDRESS_SPACE_MIB = 3072
"""More than a process has when it begins; what does not fit is a MemoryError of the reader."""

_NEXT, _COUNT = struct.Struct("q"), 1 << 16


@dataclass
class Report:
    """What came of one target's files."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number of the damage, and what went wrong."""
    worst_s: float = 0.0
    worst_mib: float = 0.0

    def line(self) -> str:
        """One row of the table."""
        counts = ", ".join(f"{name} {n}" for name, n in self.outcomes.most_common())
        return (
            f"{self.target:28} {sum(self.outcomes.values()):6}  worst {self.worst_s:6.2f} CPU s "
            f"{self.worst_mib:5.0f} MiB  {counts}"
        )


def damaged(target: Target, seed: int, number: int) -> bytes:
    """The file of a number."""
    rng = random.Random(f"{seed} {target.name} {number}")
    return mutate(rng.choice(list(target.files)), rng, target.files, target.aware)


def run(target: Target, count: int, seed: int, only: int | None = None) -> Report:
    """Reads `count` damaged files in processes, a new one after each that was ended."""
    report = Report(target.name)
    place = mmap.mmap(-1, mmap.PAGESIZE)
    number = 0 if only is None else only
    end = count if only is None else only + 1
    while number < end:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _read_all(target, seed, range(number, end), place, writing)
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                _count(report, *json.loads(line))
        _, status = os.waitpid(child, 0)
        (number,) = _NEXT.unpack_from(place)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            reason = {"SIGPROF": "took too long", "SIGALRM": "blocked"}.get(
                name, f"ended by {name}"
            )
            seconds = target.cpu_s if name == "SIGPROF" else 0.0
            _count(report, number, f"DEFECT {reason}", seconds, 0.0)
            number += 1
        else:
            assert os.WEXITSTATUS(status) == 0, f"the harness failed: {status}"
            break
    return report


def _count(report: Report, number: int, outcome: str, seconds: float, mib: float) -> None:
    report.outcomes[outcome.split(":")[0]] += 1
    report.worst_s = max(report.worst_s, seconds)
    report.worst_mib = max(report.worst_mib, mib)
    if outcome.startswith("DEFECT"):
        report.failures.append((number, outcome))


def _read_all(target: Target, seed: int, numbers: range, place: mmap.mmap, writing: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        faulthandler.disable()
        for number in (signal.SIGPROF, signal.SIGALRM):  # A test runner may have handlers of them.
            signal.signal(number, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)  # Decoders in C complain to it.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = _status("VmSize") + ADDRESS_SPACE_MIB * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with os.fdopen(writing, "w") as lines:
            for number in numbers:
                _NEXT.pack_into(place, 0, number)
                data = damaged(target, seed, number)
                signal.setitimer(signal.ITIMER_PROF, target.cpu_s)
                signal.setitimer(signal.ITIMER_REAL, WAIT_S)
                outcome = _read_one(target, data)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                lines.write(json.dumps([number, *outcome]) + "\n")
                lines.flush()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        os._exit(code)


def _read_one(target: Target, data: bytes) -> tuple[str, float, float]:
    before, began = _begin_memory(), time.process_time()
    try:
        target.read(data)
        outcome = "read"
    except target.may_raise as error:
        outcome = type(error).__name__
        text = str(error)
        if len(text) > 20_000:
            outcome = f"DEFECT {outcome} of {len(text)} characters"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/pipeline/" in f.filename or "/model/" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        outcome = f"DEFECT {type(error).__name__} {where}: {str(error)[:300]!r}"
    seconds = time.process_time() - began
    mib = _growth(before) / MIB
    if mib > target.memory_mib:
        outcome = f"DEFECT memory: {mib:.0f} MiB ({outcome})"
    return outcome, seconds, mib


def _status(key: str, pid: int | str = "self") -> int:
    """Bytes of a process, by a key of the kernel; 0 for one that ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            found = re.search(rf"{key}:\s+(\d+) kB", file.read())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _family() -> list[int]:
    """This process, and those that it started."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [os.getpid(), *map(int, file.read().split())]


def _begin_memory() -> dict[int, int]:
    """Bytes that each process of the family has; from now on the kernel notes its peak."""
    for pid in (family := _family()):
        with suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")
    return {pid: _status("VmRSS", pid) for pid in family}


def _growth(before: dict[int, int]) -> int:
    """Bytes by which the family grew at most, each process by itself."""
    return sum(max(0, _status("VmHWM", pid) - before.get(pid, 0)) for pid in _family())


def targets_of(kind: str, folder: Path) -> list[Target]:
    """The targets of a kind, with their files in a folder of their own."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    return KINDS[kind](folder / kind)


def main(argv: list[str] | None = None) -> int:
    """Runs the kinds that are asked for, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=[*KINDS, "all"], default=["all"])
    parser.add_argument("--target", help="Only the target of this name.")
    parser.add_argument("--count", type=int, default=1000, help="Files a kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="Only the damage of this number.")
    parser.add_argument("--out", type=Path, help="Folder that keeps the failing files.")
    given = parser.parse_args(argv)
    kinds = list(KINDS) if "all" in given.kind else given.kind
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        for kind in kinds:
            began = time.monotonic()
            targets = targets_of(kind, Path(temporary))
            for target in targets:
                if given.target not in (None, target.name):
                    continue
                count = -(-given.count // (1 if given.target else len(targets)))
                report = run(target, count, given.seed, given.number)
                print(report.line(), flush=True)
                shown: set[str] = set()
                for number, outcome in report.failures:
                    failed += 1
                    if (short := outcome.split(":")[0]) not in shown:
                        shown.add(short)
                        print(f"    number {number}: {outcome}", flush=True)
                    if given.out:
                        _keep(given.out / kind, target, given.seed, number, outcome)
            print(f"  {kind}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"{failed} defects" if failed else "ok: only what the docstrings promise came out")
    return int(failed > 0)


def _keep(folder: Path, target: Target, seed: int, number: int, outcome: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = damaged(target, seed, number)
    name = re.sub(r"[^\w.]+", "-", f"{target.name}-{number}-{outcome.split(':')[0]}")
    digest = hashlib.sha256(data).hexdigest()[:6]
    (folder / f"{name}-{digest}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
