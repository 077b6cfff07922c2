"""Which names of stored objects can be used as paths, and which are no content.

A bucket or a disk may hold names that no path within a storage can be: with a backslash, as
archives of Windows unpack, with an empty part, as a doubled slash in a copying command leaves, or
in another encoding than UTF-8. The readers of datasets leave such objects out, with the reason.
"""

_NO_CONTENT = frozenset(
    {"@eadir", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "@sharebin", "@tmp"}
    | {"__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information"}
)
"""Folders, in lower case, that a NAS, macOS, Windows or a file system adds: thumbnails, what was
deleted, and earlier states of the same files lie in them."""


def why_unusable(path: str) -> str:
    """Why an object of this name cannot be read by its path; an empty text if it can."""
    if "\\" in path:
        return "its name has a backslash: rename it with '/' between folders"
    if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
        return "its name is not UTF-8: rename it"
    if "\0" in path:
        return "its name has a zero byte: rename it"
    parts = path.split("/")
    if "" in parts:
        return "its name has an empty part ('//', or '/' at an end): rename it"
    if "." in parts or ".." in parts:
        return "its name has a part '.' or '..': rename it"
    return ""


def is_hidden(path: str) -> bool:
    """Whether a path goes through what systems add beside content: `._x.jpg`, `@eaDir/...`."""
    return any(part.startswith(".") or part.lower() in _NO_CONTENT for part in path.split("/"))
