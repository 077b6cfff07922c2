"""Local folders that settings name: absolute paths, and folders that can be written to."""

import errno
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import Outage, UserError


def resolve_location(key: str, uri: str) -> str:
    """Makes a local path absolute, because Ray workers run in other working folders.

    An address that is no local path stays as it is.

    Raises:
        UserError: The path is relative to a working folder that Ray uploaded for a job: what is
            written there is lost, and what is not in the upload is missing. Or it is no address.
    """
    if "://" in uri:
        return uri
    if re.match(r"[a-z][a-z0-9]+:/", uri):
        raise UserError(
            f"{key}={uri}: an address has two slashes: write {uri.replace(':/', '://')}"
        )
    try:
        path = Path(uri).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={uri}: {error}: write the path without ~") from None
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise UserError(
            f"{key}={uri}: is relative to the folder that Ray made for this job; give an absolute "
            "path that all nodes share, or an s3:// address"
        )
    return os.path.realpath(path)  # Unlike `Path.resolve`, it takes a link that leads to itself.


def home_state_dir() -> Path:
    """The folder of this user on this machine for what goes with storages that are not local.

    Raises:
        RuntimeError: The user has no home.
    """
    return Path.home() / ".lseg"


def local_state_dir(key: str, given: str, storage: str) -> Path:
    """The local folder for state that goes with a storage: unsent metrics, a sqlite MLflow.

    Args:
        key: The name of the storage's setting.
        given: The setting's value as the user wrote it.
        storage: The same, absolute: a local folder, which is the answer, or a URI.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    if "://" not in storage:
        ensure_writable_dir(key, given, Path(storage))
        return Path(storage)
    home = os.environ.get("HOME", "")
    try:
        folder = home_state_dir()
    except RuntimeError as error:
        text = f"HOME={home}: {error}: set it to a folder that can be written to"
        raise UserError(text) from None
    ensure_writable_dir("HOME", home, folder)
    return folder


def ensure_writable_dir(key: str, given: str, folder: Path) -> None:
    """Creates a local folder for a setting unless it exists, and tries to write into it.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    if problem := _problem_of(folder):
        raise UserError(
            f"{key}={given}: {folder} must be a folder that this user can write to "
            f"({problem}): give another, or access to it"
        )


def _problem_of(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "not writable"
        if not problem:
            # What access allows, the file system may still refuse: /proc, a mount for reading.
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, ValueError) as error:  # A name may hold a zero byte.
        problem = getattr(error, "strerror", None) or str(error)
    return problem


def try_writable_place(key: str, uri: str) -> None:
    """Tries whether a place that is a local folder can be written to; leaves others alone.

    Nothing is left of the trial: settings that are refused after it must not leave a folder.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    path = uri.removeprefix("file://")
    if "://" not in path:
        _try_dir(key, uri, Path(resolve_location(key, path)))


def _try_dir(key: str, given: str, folder: Path) -> None:
    try:
        new = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    except ValueError:  # A name may hold a zero byte.
        new = []
    try:
        ensure_writable_dir(key, given, folder)
    finally:
        for parent in new:
            # Another process may have begun to use it, or it could not be made.
            with suppress(OSError):
                parent.rmdir()


def ensure_writable_file(key: str, given: str) -> None:
    """Tries whether a local file can be written, for a job that writes it at its end.

    Raises:
        UserError: It cannot.
    """
    path = Path(given).expanduser().absolute()
    ensure_writable_dir(key, given, path.parent)
    try:
        is_new = not path.exists()
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"{key}={given}: must be a file that this user can write "
            f"({error.strerror or error}): give another"
        ) from error


def make_private(folder: Path, where: str, advice: str) -> None:
    """Makes a folder that only this user can write to.

    Args:
        folder: Which; those above it are made too.
        where: The setting and value that name it.
        advice: What to do where it cannot be used.

    Raises:
        UserError: It cannot be made there, or others can write to it.
        Outage: This node's disk fails, where those of others may not.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        kind = UserError if error.errno in (errno.EACCES, errno.ENOTDIR, errno.EEXIST) else Outage
        raise kind(f"{where}: cannot be made ({error.strerror}): {advice}") from None
    # In a folder like /tmp another user could have made it first, with other files in it.
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_own or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{where}: must be a folder that this user alone can write to: {advice}")
