"""Kills a job, or lets its disk refuse, at its write number N: a point of the code, not of time.

A folder holds the plan (`plan.json`), the count of writes over all processes of a job (`count`) and
what each was (`log`). Processes load this by `write_faults_start/sitecustomize.py`, and only those
of tests have it on their PYTHONPATH. What counts as a write is what Python tells its audit hooks:
files that are opened for writing, renamed, linked, removed, and folders that are made or removed,
below the plan's places; where the plan asks for them, also the commits of SQLite's databases there.
What Ray's C++ would write unseen, such as checkpoints, goes through Python's files instead.

Before the write of the plan's number the process

    kill    ends by SIGKILL, and takes the job's first process along,
    empty   does the same after it has made or emptied the file, as a crash before a flush does,
    ENOSPC, EROFS, EACCES, EIO    gets this error, there and at each later write, as of a full disk.
"""

import errno
import fcntl
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = "LSEG_TEST_WRITE_FAULTS"
"""The environment variable that names the folder."""
KINDS = ("kill", "empty", "ENOSPC", "EROFS", "EACCES", "EIO")

_WRITES = {
    "os.rename": (1, 3), "os.link": (1, 3), "os.symlink": (1, 2),
    "os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2),
}  # fmt: skip
"""Event -> which of its arguments are the path that changes, and the folder it is relative to."""
_RAY = ("ray.train.v2._internal.execution.storage", "ray.train._internal.storage")
"""Modules of Ray that write through pyarrow."""
_IGNORED = (".lock", ".log", ".db", ".db-journal", ".db-wal")
"""Lock files hold nothing; databases are written by a library with a journal of its own."""

_busy = False


def install() -> None:
    """Watches this process from now on."""
    sys.addaudithook(_on_event)
    connect = sqlite3.dbapi2.connect

    def watched(database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
        made = connect(database, *arguments, **options)
        made.set_trace_callback(_Commits(os.path.abspath(os.fsdecode(database))))
        return made

    sqlite3.connect = sqlite3.dbapi2.connect = watched
    sys.meta_path.insert(0, _RayInPython())
    for name in _RAY:
        if name in sys.modules:
            _write_by_python(sys.modules[name])


class _RayInPython(importlib.abc.MetaPathFinder):
    """Changes the modules of `_RAY` as they are imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """As the import system asks for."""
        if fullname not in _RAY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        plain = spec.loader.exec_module

        def execute(module: Any) -> None:
            plain(module)
            _write_by_python(module)

        spec.loader.exec_module = execute
        return spec


def _write_by_python(module: Any) -> None:
    """Gives Ray a local file system of Python's in place of pyarrow's."""
    plain = module.get_fs_and_path

    def get_fs_and_path(storage_path: Any, storage_filesystem: Any = None) -> tuple[Any, str]:
        from fsspec.implementations.local import LocalFileSystem
        from pyarrow import fs

        system, path = plain(storage_path, storage_filesystem)
        if isinstance(system, fs.LocalFileSystem):
            system = fs.PyFileSystem(fs.FSSpecHandler(LocalFileSystem()))
        return system, path

    module.get_fs_and_path = get_fs_and_path


def plan(
    folder: Path,
    places: Sequence[Path],
    at: int = 0,
    kind: str = "kill",
    databases: bool = False,
) -> dict[str, str]:
    """Begins a new count, and says what happens at which write; 0 only counts.

    Returns:
        The environment of the processes; the same for all plans of a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"places": [str(p.resolve()) for p in places], "at": at, "kind": kind}
    content["databases"] = databases
    files = {"plan.json": json.dumps(content), "count": "0", "log": "", "driver": ""}
    for name, text in files.items():
        (folder / f"{name}.new").write_text(text)
        os.replace(folder / f"{name}.new", folder / name)
    here = Path(__file__).resolve()
    paths = [str(here.parent / "write_faults_start"), str(here.parents[2])]
    paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        FOLDER: str(folder),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths))),
    }


def drive(folder: Path) -> None:
    """Makes this process the one that a kill takes along."""
    (folder / "driver").write_text(str(os.getpid()))


def writes(folder: Path) -> list[str]:
    """What the processes wrote since the plan was made, in order."""
    return (folder / "log").read_text().splitlines()


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    global _busy
    if _busy or (event != "open" and event not in _WRITES):
        return
    if event == "open":
        path, _, flags = arguments
        if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    else:
        (name, folder), flags = _WRITES[event], 0
        path = arguments[name]
        if arguments[folder] >= 0 and isinstance(path, str | bytes):  # As `shutil.rmtree` does.
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder]}"), path)
    if not isinstance(path, str | bytes | os.PathLike):
        return
    _busy = True
    try:
        _write(event, os.path.abspath(os.fsdecode(path)), flags)
    finally:
        _busy = False


class _Commits:
    """Hears of each statement of a connection before it runs; a commit of changes is a write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._has_changes = False

    def __call__(self, statement: str) -> None:
        word = statement.lstrip()[:6].upper()
        if word == "COMMIT" and self._has_changes:
            _write("commit", self._path, 0)
        self._has_changes = word in ("INSERT", "UPDATE", "DELETE") or (
            self._has_changes and word not in ("COMMIT", "ROLLBA")
        )


def _write(event: str, path: str, flags: int) -> None:
    folder = os.environ.get(FOLDER, "")
    try:
        with open(f"{folder}/plan.json") as file:
            given = json.load(file)
    except OSError:
        return
    if not any(path.startswith(f"{place}/") or path == place for place in given["places"]):
        return
    is_commit = event == "commit"
    if is_commit and not (given["databases"] and given["kind"] == "kill"):
        return
    if not is_commit and (path.endswith(_IGNORED) or _changes_nothing(event, path)):
        return
    number = _count(folder, f"{os.getpid()} {event} {path}")
    if not given["at"] or number < given["at"]:
        return
    if given["kind"] in ("kill", "empty"):
        if number > given["at"]:
            return
        if given["kind"] == "empty" and event == "open" and not flags & os.O_APPEND:
            how = os.O_WRONLY | os.O_CREAT | (flags & os.O_EXCL) | (flags & os.O_TRUNC)
            os.close(os.open(path, how))
        # The first process first: a job whose worker alone died would go on with another.
        with open(f"{folder}/driver") as file:
            os.kill(int(file.read() or os.getpid()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if given["kind"] == "ENOSPC" and event in ("os.remove", "os.rmdir"):
        return
    code = getattr(errno, given["kind"])
    raise OSError(code, os.strerror(code), path)


def _changes_nothing(event: str, path: str) -> bool:
    return (event == "os.mkdir" and os.path.isdir(path)) or (
        event == "os.remove" and not os.path.lexists(path)
    )


def _count(folder: str, text: str) -> int:
    with open(f"{folder}/count", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(file.read() or 0) + 1
        file.seek(0)
        file.write(str(number))
        file.flush()
        with open(f"{folder}/log", "a") as log:
            log.write(f"{number} {text}\n")
    return number
