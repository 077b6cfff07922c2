"""Which folders of a dataset of the user's own are its splits, by their names."""

import re
from collections.abc import Iterable, Sequence

from pipeline.data.datasets.base import Split
from pipeline.storage.names import is_hidden

_NAMES_OF_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folders that are splits, in lower case."""
_WORDS_FOR_SPLITS = _NAMES_OF_SPLITS | {
    "trn": "train",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "holdout": "test",
    "tst": "test",
}
"""Words of the names of folders which are splits where all folders beside them are too."""


def splits_in(folders: Sequence[str], divided: bool = False) -> dict[str, list[str]]:
    """The folders that are splits, by split; nothing where none is, or test alone among others.

    A folder called `train2017` or `dev` is one where every folder beside it is a split and there
    are two kinds of them, or where it is known already that the dataset is divided.
    """
    folders = [name for name in folders if not is_hidden(name)]
    found: dict[str, list[str]] = {}
    alike: dict[str, list[str]] = {}
    for name in folders:
        if split := _NAMES_OF_SPLITS.get(name.lower()):
            found.setdefault(split, []).append(name)
        words = re.findall(r"[a-z]+", name.lower())
        for split in [_WORDS_FOR_SPLITS[w] for w in words if w in _WORDS_FOR_SPLITS][:1]:
            alike.setdefault(split, []).append(name)
    if divided:
        return alike | found
    if len(alike) > len(found) and len(alike) > 1 and len(folders) == sum(map(len, alike.values())):
        return alike | found
    only_test = found.keys() == {"test"} and len(folders) > len(found["test"])
    return {} if only_test else found


def deeper_folders(paths: Iterable[str]) -> list[str]:
    """Folders of two splits or more among those that images lie in; none where there are fewer."""
    found: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")[:-1]
        for depth, part in enumerate(parts):
            if split := _NAMES_OF_SPLITS.get(part.lower()):
                found.setdefault(split, "/".join(parts[: depth + 1]))
    return sorted(found.values()) if len(found) > 1 else []


def note_on_depth(folders: Sequence[str]) -> str:
    """What is said of `deeper_folders`."""
    return (
        f"{' and '.join(folders)} are called as splits and lie too deep to be read as such, so "
        "that a share of all images is drawn for validation: move such folders up, directly into "
        "that of the images and that of the masks"
    )
