"""The faults of writes hit the write that they name, and nothing where none is planned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.write_points import spread
from tests.support import write_faults

SCRIPT = """
from pathlib import Path
import os, sys
place = Path(sys.argv[1])
(place / "folder").mkdir()
(place / "folder/a").write_text("a")
os.replace(place / "folder/a", place / "folder/b")
print((place / "folder/b").read_text())
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "place"


def run(place: Path, at: int, kind: str = "kill") -> subprocess.CompletedProcess[str]:
    env = os.environ | write_faults.plan(place.parent / "faults", [place], at, kind)
    command = [sys.executable, str(place.parent / "script.py"), str(place)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def written(place: Path) -> list[str]:
    return [" ".join(line.split()[2:]) for line in write_faults.writes(place.parent / "faults")]


def test_writes_are_counted_in_order_and_reads_are_not(place):
    assert run(place, 0).stdout == "a\n"
    found = [line.replace(str(place), "") for line in written(place)]
    assert found == ["os.mkdir /folder", "open /folder/a", "os.rename /folder/b"]


@pytest.mark.parametrize(
    ("at", "kind", "left"),
    [
        (1, "kill", []),
        (2, "kill", ["folder"]),
        (2, "empty", ["folder", "folder/a"]),
        (3, "kill", ["folder", "folder/a"]),
    ],
)
def test_a_kill_comes_before_the_write_or_leaves_an_empty_file(place, at, kind, left):
    assert run(place, at, kind).returncode == -9
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == left
    if kind == "empty":
        assert (place / "folder/a").read_bytes() == b""


def test_a_disk_that_is_full_stays_full(place):
    ended = run(place, 2, "ENOSPC")
    assert "No space left on device" in ended.stderr
    (place / "folder").rmdir()
    assert run(place, 4, "ENOSPC").stdout == "a\n"


def test_a_kill_takes_the_first_process_along(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    child = "import sys; open(sys.argv[1] + '/x', 'w')"
    first = f"import subprocess, sys; from tests.support import write_faults; from pathlib import \
Path; write_faults.drive(Path({str(tmp_path / 'faults')!r})); subprocess.run([sys.executable, \
'-c', {child!r}, sys.argv[1]]); print('lives')"
    env = os.environ | write_faults.plan(tmp_path / "faults", [place], 1)
    command = [sys.executable, "-c", first, str(place)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-9, "")


def test_points_are_spread_from_first_to_last():
    assert spread(5, 0) == spread(5, 9) == [1, 2, 3, 4, 5]
    assert spread(101, 3) == [1, 51, 101]
    assert spread(9, 1) == [4]


def test_commits_of_changes_are_writes_where_they_are_asked_for(place):
    (place.parent / "script.py").write_text(
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1] + '/x.db')\n"
        "for statement in ('create table a (b)', 'insert into a values (1)', 'select * from a'):\n"
        "    connection.execute(statement)\n"
        "    connection.commit()\n"
    )
    for at, code in ((0, 0), (1, -9), (2, 0)):
        faults = write_faults.plan(place.parent / "faults", [place], at, databases=True)
        command = [sys.executable, str(place.parent / "script.py"), str(place)]
        assert subprocess.run(command, env=os.environ | faults, check=False).returncode == code
        assert [line.split("/")[0] for line in written(place)] == ["commit "]
        (place / "x.db").unlink()
