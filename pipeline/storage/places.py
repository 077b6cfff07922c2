"""Local folders that settings name: made absolute, and made."""

import os
import re
from pathlib import Path

from pipeline.errors import UserError


def resolve_location(key: str, uri: str) -> str:
    """A local path made absolute: the working folder of a Ray worker is another.

    Args:
        key: Of the setting.
        uri: Its value; what is no local path stays as it is.

    Raises:
        UserError: It is relative to a working folder that Ray uploaded for a job: what is written
            there is lost, and what is not in the upload is not there. Or it is no place at all.
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
    return str(path.resolve())


def local_state_dir(key: str, given: str, storage: str) -> Path:
    """Where this machine keeps what goes with a storage: metrics that wait, a sqlite MLflow.

    Args:
        key: Of the setting of the storage.
        given: Its value as the user wrote it.
        storage: The same, absolute: a local folder, which is the answer, or a URI.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    if "://" not in storage:
        ensure_writable_dir(key, given, Path(storage))
        return Path(storage)
    home = os.environ.get("HOME", "")
    try:
        folder = Path.home() / ".lseg"
    except RuntimeError as error:
        raise UserError(
            f"HOME={home}: {error}: set it to a folder that can be written to"
        ) from None
    ensure_writable_dir("HOME", home, folder)
    return folder


def ensure_writable_dir(key: str, given: str, folder: Path) -> None:
    """Makes a folder of this machine for a setting.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise UserError(
            f"{key}={given}: {folder} must be a folder that this user can write to "
            f"({problem}): give another, or access to it"
        )
