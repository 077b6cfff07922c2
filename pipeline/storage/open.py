"""Opens a storage by its address."""

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.base import Storage, check_folder
from pipeline.storage.local import LocalStorage


def open_storage(uri: str) -> Storage:
    """Opens a local directory or an S3 prefix; neither has to exist yet, and nothing is contacted.

    Args:
        uri: A local path, absolute or relative to the working directory, `file:///path`, or
            `s3://bucket/prefix`.

    Raises:
        UserError: The URI is none of these.
    """
    if match := re.fullmatch(r"s3://([^/]+)(?:/(.*))?", uri):
        from pipeline.storage.s3 import S3Storage  # loads boto3 only where S3 is used

        return S3Storage(match[1], check_folder((match[2] or "").strip("/")))
    if uri.startswith("file:///"):
        return LocalStorage(Path(uri.removeprefix("file://")))
    if not uri or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", uri):
        raise UserError(
            f"storage {uri!r}: must be a local directory or s3://bucket/prefix: correct the URI"
        )
    return LocalStorage(Path(uri))
