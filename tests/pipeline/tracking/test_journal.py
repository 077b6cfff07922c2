import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from pipeline.tracking.delivery import next_batch
from pipeline.tracking.journal import Journal, JournalClosed
from pipeline.tracking.records import Record, RunIdentity, from_line, to_line

REPO = Path(__file__).parents[3]
IDENTITY = RunIdentity(experiment="lseg", run_name="mix", run_key="k1")


def _metrics(step: int, num: int = 1, key: str = "loss") -> Record:
    values = {f"{key}{i}": float(step) for i in range(num)}
    return Record(kind="metrics", time_ms=1000 + step, step=step, values=values)


def _journal(path: Path, max_in_memory: int = 1000) -> Journal:
    journal = Journal(path, IDENTITY, max_in_memory)
    journal.open()
    return journal


def _steps(lines: list[bytes]) -> list[int]:
    return [from_line(line)[1].step for line in lines]


def _append(journal: Journal, *steps: int, num: int = 1) -> None:
    for step in steps:
        journal.append(_metrics(step, num))


def test_the_next_process_continues_at_the_cursor(tmp_path):
    path = tmp_path / "deep" / "spill.jsonl"
    journal = _journal(path)
    assert journal.read(9) == []
    _append(journal, *range(5))
    journal.advance(journal.read(2))
    assert journal.rest().count(b"\n") == 3
    _append(journal, 5)
    journal.close()

    again = _journal(path)
    assert _steps(again.read(99)) == [2, 3, 4, 5]
    again.advance(again.read(99))
    assert path.stat().st_size == 0
    again.close()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_killed_process_leaves_its_cursor(tmp_path):
    path = tmp_path / "spill.jsonl"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.pipeline.tracking.test_journal import _append, _journal\n"
        "journal = _journal(Path(sys.argv[1])); _append(journal, *range(9))\n"
        "journal.advance(journal.read(4)); _append(journal, 9); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPO).returncode == -9
    journal = _journal(path)
    assert _steps(journal.read(99)) == list(range(4, 10))
    journal.close()


def test_sent_lines_do_not_pile_up_while_new_ones_come(tmp_path):
    path = tmp_path / "spill.jsonl"
    journal = _journal(path)
    passed, largest = [], 0
    _append(journal, 0, num=40)
    for step in range(1, 4000):
        _append(journal, step, num=40)  # There is always one more line than is passed.
        lines = journal.read(1)
        passed += _steps(lines)
        journal.advance(lines)
        largest = max(largest, path.stat().st_size)
    assert passed == list(range(3999))
    assert largest < 1.1 * 2**20
    journal.close()
    assert _steps(path.read_bytes().splitlines()) == [3999]


@pytest.mark.parametrize("stop_at", ["write", "truncate"])
def test_a_crash_while_cutting_loses_nothing(tmp_path, stop_at):
    path = tmp_path / "spill.jsonl"
    journal = _journal(path)
    _append(journal, *range(9))
    journal.advance(journal.read(7))
    whole, rest = path.read_bytes(), journal.rest()
    journal.close()
    assert path.read_bytes() == rest
    # What a process leaves that is killed between two of the steps of cutting.
    path.write_bytes(rest + whole[len(rest) :] if stop_at == "write" else rest)
    again = _journal(path)
    assert _steps(again.read(99)) == [7, 8]
    again.close()


def test_a_crash_while_the_earlier_version_compacted_loses_nothing(tmp_path):
    path = tmp_path / "spill.jsonl"
    path.touch()
    path.with_name("spill.jsonl.partial").write_bytes(to_line(IDENTITY, _metrics(7)))
    journal = _journal(path)
    assert _steps(journal.read(9)) == [7]
    journal.close()
    assert [file.name for file in tmp_path.iterdir()] == ["spill.jsonl"]


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "spill.jsonl"
    path.write_bytes(to_line(IDENTITY, _metrics(0)) + to_line(IDENTITY, _metrics(1))[:20])
    journal = _journal(path)
    _append(journal, 2)
    found = []
    while lines := journal.read(9):
        identity, batch = next_batch(lines)
        found.append([record.step for record in batch] if identity else "torn")
        journal.advance(lines[: max(len(batch), 1)])
    assert found == [[0], "torn", [2]]
    journal.close()


def test_a_copy_adds_what_the_file_lacks_and_a_torn_end_costs_only_itself(tmp_path):
    lines = [to_line(IDENTITY, _metrics(step)) for step in range(5)]
    journal = _journal(tmp_path / "spill.jsonl")
    assert journal.rest() == b""
    _append(journal, 0, 1)
    journal.add_lines(b"".join(lines[1:4]) + lines[4][:20])
    assert journal.rest() == b"".join(lines[:4]) + lines[4][:20] + b"\n"
    journal.advance(journal.read(3))
    assert journal.rest() == lines[3] + lines[4][:20] + b"\n"
    assert journal.rest().count(b"\n") == 2
    journal.close()


def test_a_long_line_is_read_whole(tmp_path):
    journal = _journal(tmp_path / "spill.jsonl")
    text = Record(kind="text", time_ms=1, text="x" * 3_000_000, artifact_path="a.txt")
    journal.append(text)
    _append(journal, 1)
    lines = journal.read(9)
    assert from_line(lines[0])[1] == text
    journal.advance(lines[:1])
    assert _steps(journal.read(9)) == [1]
    journal.close()


@pytest.fixture
def limited(tmp_path):
    """A journal in a file that may not grow beyond 4,000 bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield _journal(tmp_path / "s.jsonl", max_in_memory=50)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_tears_no_line_and_loses_nothing(limited):
    _append(limited, *range(60))
    on_disk = _steps(limited.rest().splitlines())
    assert 10 < len(on_disk) < 59
    assert on_disk == list(range(len(on_disk)))
    with pytest.raises(OSError, match="File too large"):
        limited.add_lines(b"x" * 5000 + b"\n")
    assert _steps(limited.rest().splitlines()) == on_disk
    # All of it is read, in order, and what is sent makes room for what waits.
    lines = limited.read(20)
    limited.advance(lines)
    found = _steps(lines)
    while lines := limited.read(20):
        found += _steps(lines)
        limited.advance(lines)
        limited.flush()
    assert found == list(range(60))
    assert limited.rest() == b""
    assert limited.lost == 0
    limited.close()


def test_a_torn_line_on_a_full_disk_is_ended_once_there_is_room(limited, tmp_path):
    resource = pytest.importorskip("resource")
    limited.close()
    path = tmp_path / "s.jsonl"
    path.write_bytes(to_line(IDENTITY, _metrics(0)).ljust(3999, b"x") + b"x")
    journal = Journal(path, IDENTITY, 10)
    with pytest.raises(OSError, match="File too large"):
        journal.open()
    _append(journal, 1)
    assert _steps(journal.read(9)) == [1]  # Can be sent all the same.
    journal.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    journal.flush()
    first, torn, last = journal.read(9)
    assert (_steps([first, last]), set(torn)) == ([0, 1], set(b"x\n"))
    journal.close()


def test_a_disk_that_stays_full_costs_the_oldest_in_memory(limited):
    _append(limited, *range(200))
    on_disk = len(limited.rest().splitlines())
    assert limited.lost == 0
    limited.flush()
    assert limited.lost == 200 - 50 - on_disk
    found = []
    while lines := limited.read(30):
        found += _steps(lines)
        limited.advance(lines)
    assert found == [*range(on_disk), *range(150, 200)]
    limited.close()


def test_a_disk_with_room_again_takes_what_waits(limited, tmp_path):
    resource = pytest.importorskip("resource")
    _append(limited, *range(60))
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    limited.flush()
    _append(limited, 60)
    assert _steps((tmp_path / "s.jsonl").read_bytes().splitlines()) == list(range(61))
    limited.close()


def test_two_processes_cannot_use_one_file(tmp_path):
    first = _journal(tmp_path / "s.jsonl")
    second = Journal(tmp_path / "s.jsonl", IDENTITY, 10)
    with pytest.raises(Timeout):
        second.open()
    _append(first, 0)
    _append(second, 1)  # Waits in memory until the file is free.
    second.flush()
    assert first.rest().count(b"\n") == 1
    first.close()
    second.flush()
    assert second.rest().count(b"\n") == 2
    second.close()


@pytest.mark.parametrize("num", [3, 700])
def test_a_read_that_is_not_the_end_says_so(tmp_path, num):
    journal = _journal(tmp_path / "s.jsonl")
    for step in range(num):
        journal.append(_metrics(step, 20, key="a long name of a metric, " * 2))
    found = []
    while lines := journal.read(500):
        found += _steps(lines)
        assert journal.reached_end == (len(found) == num)
        journal.advance(lines)
    assert found == list(range(num))
    journal.close()


def test_many_threads_append_whole_lines_while_one_reads(tmp_path):
    journal = _journal(tmp_path / "s.jsonl")
    threads = [
        threading.Thread(target=_append, args=(journal, *range(n, 2000, 4))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    found: list[int] = []
    while any([thread.is_alive() for thread in threads]) or journal.rest():
        if lines := journal.read(7):
            found += _steps(lines)
            journal.advance(lines)
    assert sorted(found) == list(range(2000))
    journal.close()


def test_a_sealed_journal_is_touched_by_nobody(tmp_path):
    journal = _journal(tmp_path / "s.jsonl")
    _append(journal, 0, 1)
    lines = journal.read(1)
    journal.seal()
    before = sorted((path, path.read_bytes()) for path in tmp_path.iterdir())
    _append(journal, 2)
    for late in (
        lambda: journal.advance(lines),
        lambda: journal.read(1),
        lambda: journal.set_aside(lines, "why"),
        lambda: journal.add_lines(b"one\n"),
    ):
        with pytest.raises(JournalClosed):
            late()
    assert sorted((path, path.read_bytes()) for path in tmp_path.iterdir()) == before
    journal.close()


def test_another_runs_lines_are_set_apart_also_behind_its_cursor(tmp_path):
    path = tmp_path / "spill.jsonl"
    other = RunIdentity(experiment="lseg", run_name="old", run_key="k0")
    sent, left = to_line(other, _metrics(0)), to_line(other, _metrics(1))
    path.write_bytes(b"#" + sent[1:] + left)
    journal = _journal(path)
    _append(journal, 5)
    assert _steps(journal.read(9)) == [5]
    assert (tmp_path / "spill-k0.jsonl").read_bytes() == b"#" + sent[1:] + left
    journal.close()
