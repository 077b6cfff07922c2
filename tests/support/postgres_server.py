"""A real PostgreSQL as processes of its own, on a socket in a folder of its user alone."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.support.mlflow_server import wait_until


def missing_for_postgres() -> str:
    """What keeps a PostgreSQL from running here; empty where nothing does."""
    if not find_spec("psycopg2"):
        return "the package psycopg2-binary"
    for binary in ("initdb", "postgres", "pg_isready"):
        if not _binary(binary):
            return f"the program {binary} (Debian: postgresql)"
    return "" if _user() is not None or os.getuid() else "a user `postgres`, since root may not"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs while the `with` block lasts; its URI, without a password since it has no port."""
    # Paths of sockets are limited to 107 bytes, and the user must be able to enter all parents.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    if _user() is not None:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    command = [_binary("initdb"), "--pgdata", data, "--username", "mlflow", "--auth", "trust"]
    _run([*command, "--no-locale", "--encoding", "UTF8", "--no-sync"])
    command = [_binary("postgres"), "-D", data, "-k", folder, "-c", "listen_addresses="]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", user=_user())
    try:
        check = [_binary("pg_isready"), "--host", folder, "--username", "mlflow"]
        wait_until(lambda: subprocess.run(check, capture_output=True).returncode == 0)
        yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
    finally:
        process.terminate()  # No new connections; the open ones of a stopped MLflow are gone.
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def _binary(name: str) -> str:
    places = [os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return shutil.which(name, path=os.pathsep.join(places)) or ""


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid():
        return None
    return next((user.pw_name for user in pwd.getpwall() if user.pw_name == "postgres"), None)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", user=_user())
    assert done.returncode == 0, done.stderr
