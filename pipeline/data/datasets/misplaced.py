"""Where a dataset lies when it is not where its root says: higher, deeper, or a folder in itself.

Archives are unpacked into folders of their own name, so that what belongs into `gtFine` lies in
`gtFine/gtFine`, or a whole dataset two folders down. Messages name the place instead of all the
files that have no partner.
"""

import posixpath
from collections.abc import Callable, Sequence

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.names import is_hidden
from pipeline.storage.open import open_storage

_LEVELS = 3
"""Folders up and down that are looked at."""
_MAX_LOOKED_AT = 100
"""Folders of a level that are looked at; each costs a few requests to a store."""

Recognises = Callable[[Storage, str], bool]
"""Whether a folder of a storage, "" for its root, looks like the dataset's."""


def elsewhere(recognises: Recognises, uri: str) -> str:
    """The address near `uri` at which a dataset lies; empty where there is none.

    Args:
        recognises: Says so of a folder.
        uri: The root that was given, which is none: a local path or `s3://`.
    """
    uri = uri.rstrip("/")
    try:
        return _above(recognises, uri) or _below(recognises, uri)
    except UserError:  # The folders above may be none of this user's.
        return ""


def doubled(root: Storage, base: str, folders: Sequence[str]) -> str:
    """Says which folder holds one of its own name in place of its content; empty for none.

    Args:
        root: The storage of the dataset.
        base: The dataset's folder in it.
        folders: Folders of the dataset, such as `gtFine`; those in them are looked at too.
    """
    for folder in dict.fromkeys(folders):
        path = posixpath.join(base, folder)
        below = [posixpath.join(path, name) for name in _folders(root, path)]
        for place in (path, *below):
            name = posixpath.basename(place)
            if name in _folders(root, place):
                return f"{place}/{name} is a folder too deep: move what it holds up into {place}"
    return ""


def _above(recognises: Recognises, uri: str) -> str:
    for _ in range(_LEVELS):
        uri = uri.rpartition("/")[0]
        if not uri or uri.endswith("/"):  # The root of the disk, or no bucket any more.
            return ""
        if recognises(open_storage(uri), ""):
            return uri
    return ""


def _below(recognises: Recognises, uri: str) -> str:
    root = open_storage(uri)
    level = [""]
    for _ in range(_LEVELS):
        names = [posixpath.join(path, name) for path in level for name in _folders(root, path)]
        level = names[:_MAX_LOOKED_AT]
        for path in level:
            if recognises(root, path):
                return f"{uri}/{path}"
    return ""


def _folders(root: Storage, path: str) -> list[str]:
    names = [name for name in root.folders(path) if not is_hidden(name)]
    return names[:_MAX_LOOKED_AT]
