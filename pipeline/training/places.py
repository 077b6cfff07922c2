"""Local folders that settings name: made absolute, and made."""

import os
from pathlib import Path

from pipeline.errors import UserError


def absolute_place(key: str, uri: str) -> str:
    """A local path made absolute: the working folder of a Ray worker is another.

    Args:
        key: Of the setting.
        uri: Its value; what is no local path stays as it is.

    Raises:
        UserError: It is relative to a working folder that Ray uploaded for a job: what is written
            there is lost, and what is not in the upload is not there.
    """
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise UserError(
            f"{key}={uri}: is relative to the folder that Ray made for this job; give an absolute "
            "path that all nodes share, or an s3:// address"
        )
    return str(path.resolve())


def make_writable(key: str, given: str, folder: Path) -> None:
    """Makes a folder of this machine for a setting.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "permission denied"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise UserError(
            f"{key}={given}: {folder} must be a folder that this user can write to "
            f"({problem}): give another, or access to it"
        )
