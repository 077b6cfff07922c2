"""What every dataset reader offers, and the parts that they share.

A reader knows one dataset: where its files lie below a root, and how its labels are stored. Nothing
else in the project does. To add a dataset, write a subclass of `Reader` in a file of its own, its
table in `pipeline/data/taxonomy/`, and register it in this package's `__init__.py`.
"""

import errno
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import cv2
import numpy as np

from pipeline.data.datasets.found import FoundFiles, Role, summary_of
from pipeline.data.datasets.found import LeftOut as LeftOut
from pipeline.data.datasets.misplaced import doubled
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.official import decode_index_png
from pipeline.data.taxonomy import IGNORE, id_table, native_table
from pipeline.errors import UserError, did_you_mean, printable
from pipeline.storage.archives.packed import PackedStorage, Packing
from pipeline.storage.base import DamagedFile, ObjectError, Storage


class NoAccess(BadSample):
    """A file that the storage refuses, which may change without any change of the file."""


Masks = dict[int, np.ndarray]
"""Segment -> (H, W) bool."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val")
"""Splits of every dataset."""
ALL_SPLITS: tuple[Split, ...] = (*SPLITS, "test")
"""Splits that a dataset of the user's own may have."""

_SAMPLE_SUFFIXES = (".jpg", ".png", ".json")
_MAX_NOTES = 20
_OF_ONE_FILE = frozenset(
    (errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
)
"""Refusals of a disk that say nothing of its other files."""
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "validation", "val2017", "test"),
}

_MAX_KEY_CHARS = 80
"""A plain tar holds names of 100 bytes, and a key is followed by extensions."""


@dataclass(frozen=True)
class Source:
    """One image and its label, as they lie in a download."""

    key: str
    """Safe as a WebDataset key and unique within (dataset, split); see `safe_key`."""
    image: str
    """Path of the image, relative to the reader's root."""
    label: str
    """Path of the label, relative to the reader's root."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the reader needs beside the label file; plain JSON values."""


@dataclass(frozen=True)
class Listing:
    """All that a split of a dataset holds."""

    sources: tuple[Source, ...]
    """The samples, sorted by key."""
    left_out: tuple[LeftOut, ...]
    """Images without a label, labels without an image, and names that clash; sorted by name."""
    notes: tuple[str, ...] = ()
    """What the user should know of the download as a whole, such as missing samples."""

    @classmethod
    def of(cls, sources: Iterable[Source], left_out: Iterable[LeftOut]) -> "Listing":
        """Sorts sources by key; of several with the same key the first one counts."""
        by_key: dict[str, Source] = {}
        left_out = list(left_out)
        for source in sources:
            if (first := by_key.setdefault(source.key, source)) is not source:
                left_out.append(LeftOut(source.image, f"its key is that of {first.image}"))
        left_out.sort(key=lambda item: item.name)
        return cls(tuple(by_key[key] for key in sorted(by_key)), tuple(left_out))


class Reader(ABC):
    """Reads one dataset's official download from a storage."""

    name: ClassVar[str]
    """The dataset, one of `pipeline.data.taxonomy.DATASETS`."""
    layout: ClassVar[str]
    """The folders that a root must hold, for messages."""
    inner_folders: ClassVar[tuple[str, ...]]
    """Folders directly in the root. A user who gives one of them means the folder above it."""
    packings: ClassVar[tuple[Packing, ...]] = ()
    """The official archives, which may lie packed in the root."""
    published: ClassVar[Mapping[Split, int]] = {}
    """Labelled images of each split, as the dataset's authors count them."""
    splits: ClassVar[tuple[Split, ...]] = SPLITS
    """Splits that the dataset has."""
    parts: ClassVar[frozenset[str]] = frozenset()
    """Names of root folders that are parts of one dataset and may lie side by side."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Folders that a root must hold to be recognised."""
    needs_one_of: ClassVar[tuple[str, ...]] = ()
    """Folders of which a root must hold at least one to be recognised."""
    unread_is_lost: ClassVar[bool] = False
    """Whether images that a listing does not use count as samples left out, or are a note."""
    label_modes: ClassVar[tuple[str, ...]] = ("L", "P")
    """The Pillow modes of the label PNGs: grey, or palette indices."""

    def __init__(self, root: Storage, base: str = "", more_bases: tuple[str, ...] = ()) -> None:
        """Creates a reader of a storage's folder `base`; lists and reads nothing yet.

        `more_bases` are the folders of further `parts`.
        """
        self.root = root
        self.base = base
        self.more_bases = more_bases
        self._found = FoundFiles()
        self._native = id_table({native_id: native_id for native_id in self._native_ids()})

    def _native_ids(self) -> Iterable[int]:
        return (native.native_id for native in native_table(self.name))

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        if not cls.needs_one_of:
            return bool(cls.needs) and has_folders(root, base, *cls.needs)
        some = any(has_folders(root, base, folder) for folder in cls.needs_one_of)
        return some and has_folders(root, base, *cls.needs)

    def known_ids(self) -> np.ndarray:
        """(256,) bool: the ids that labels may hold, IGNORE among them."""
        known = self._native != IGNORE
        known[IGNORE] = True
        return known

    def keep_unknown_ids(self) -> None:
        """Makes `native_label` return ids outside the table as they are, for checks of them."""
        self._native = np.arange(256, dtype=np.uint8)

    def listing(self, split: Split) -> Listing:
        """Pairs the images and labels of a split.

        A split that was not downloaded gives an empty listing.

        Raises:
            UserError: An index file that the split needs is missing or damaged.
        """
        self._found = FoundFiles()
        return self._complete(split, self._listing(split))

    @abstractmethod
    def _listing(self, split: Split) -> Listing:
        """Pairs the images and labels of a split as they lie in the dataset's folders."""

    def published_count(self, split: Split) -> int | None:
        """How many samples the authors count in a split of this download, if that is known."""
        return self.published.get(split)

    def native_label(self, source: Source) -> np.ndarray:
        """Reads a label.

        Returns:
            (H, W) uint8 native ids as in the dataset's table, IGNORE where the file says so.

        Raises:
            BadSample: The file is missing, damaged, or not encoded as this dataset's labels are.
        """
        gone = f"{source.label}: was there when the folder was listed"
        return self._known(self._decode(self.read(source.label, gone), source), source.label)

    def _known(self, ids: np.ndarray, path: str) -> np.ndarray:
        """Refuses ids that the dataset's table does not list.

        One such id says that the file is not encoded as it should be, as when Mapillary's labels of
        v2.0 lie where those of v1.2 belong: its other ids would then be wrong as well.
        """
        # Several times as fast as indexing, but for bytes only.
        native = cv2.LUT(ids, self._native) if ids.dtype == np.uint8 else self._native[ids]
        if np.count_nonzero(native == IGNORE) != np.count_nonzero(ids == IGNORE):
            unknown = np.unique(ids[(native == IGNORE) & (ids != IGNORE)]).tolist()
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise BadSample(f"{path}: ids {shown}: not in the table of {self.name}")
        return native

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks | None:
        """The pixels of segments, as MSeg's relabelling numbers them.

        Returns:
            For each segment that the image has, (H, W) bool. None where a segment is all that the
            image has of a class, so that there is nothing to look up.

        Raises:
            BadSample: The file that holds the segments is missing or damaged.
        """
        return None

    def read(self, path: str, missing: str) -> bytes:
        """Reads a file of a sample; `missing` is what the error says when there is no such file.

        Raises:
            BadSample: The file is missing or damaged.
        """
        try:
            return self.root.read(path)
        except FileNotFoundError as error:
            raise BadSample(missing) from error
        except DamagedFile as error:
            raise BadSample(str(error)) from error
        except ObjectError as error:
            raise NoAccess(str(error)) from error
        except (UserError, OSError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if isinstance(reason, OSError) and reason.errno in _OF_ONE_FILE:
                raise NoAccess(f"{path}: {reason.strerror}") from error
            raise

    def _read_segments(self, path: str) -> bytes:
        return self.read(path, f"{path}: must be there for the relabelling")

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        """Decodes a label file's bytes to (H, W) uint8; values outside the table may remain."""
        return decode_index_png(data, source.label, self.label_modes)

    def _complete(self, split: Split, listing: Listing) -> Listing:
        """Adds what the folders and archives withhold, and how a listing differs from others'."""
        refused = self.root.refused if isinstance(self.root, PackedStorage) else ()
        left_out = [
            LeftOut(name, f"the archive's member {reason}")
            for name, reason in refused
            if name.lower().endswith(_SAMPLE_SUFFIXES) and not _is_of_other_split(name, split)
        ]
        notes = [f"{name}: not read, it {reason}" for name, reason in refused[:_MAX_NOTES]]
        if len(refused) > _MAX_NOTES:
            notes.append(f"{len(refused) - _MAX_NOTES} more members of archives are not read")
        listed, published = len(listing.sources), self.published_count(split)
        if listed and published is not None and listed != published:
            less = f"{published - listed} are missing"
            notes.append(
                f"{split}: {listed} samples with image and label, {published} published: "
                + (less if listed < published else f"{listed - published} too many")
            )
        left_out += self._found.explained(listing.left_out, bool(listed))
        lost = self._found.left_out() + (self._found.unread if self.unread_is_lost else [])
        left_out += [bad for bad in lost if self._counts_in(bad.name, split)]
        if not self.unread_is_lost and self._found.unread:
            notes.append(f"{split}: {summary_of(self._found.unread)}")
        left_out = [LeftOut(printable(bad.name), printable(bad.reason)) for bad in left_out]
        left_out.sort(key=lambda item: item.name)
        notes = [printable(note) for note in (*listing.notes, *notes)]
        return Listing(listing.sources, tuple(left_out), tuple(notes))

    def _counts_in(self, path: str, split: Split) -> bool:
        """Whether a file that cannot be used is one of a split's, of those met while listing it."""
        return True

    def remarks(self, native_pixels: np.ndarray) -> list[str]:
        """What is odd about the ids that a split's labels have: (256,) int64, pixels of each."""
        return []

    def empty_hint(self, split: Split) -> str:
        """What a user can do where a split has no sample at all."""
        bases = (self.base, *self.more_bases)
        for remedy in (doubled(self.root, base, self.inner_folders) for base in bases):
            if remedy:
                return remedy
        return "give the folder of the official download, or set splits to those that it has"

    def _path(self, *parts: str) -> str:
        """A path below the dataset's own folder, relative to the storage's root."""
        return "/".join(part for part in (self.base, *parts) if part)

    def _files(
        self,
        folder: str,
        suffixes: str | tuple[str, ...],
        base: str | None = None,
        *,
        role: Role = "image",
        also: tuple[str, ...] = (),
    ) -> dict[str, str]:
        """Lists the files with these suffixes below a folder, which is in `self.base` or in `base`.

        Suffixes are compared without case. What cannot be used of the folder is noted for the
        listing: files of the same name, names that are no paths, and other images; those with a
        suffix of `also` are expected there.

        Returns:
            For each file its path within that folder, without the suffix -> its path in the root.
        """
        path = "/".join(part for part in (self.base if base is None else base, folder) if part)
        suffixes = (suffixes,) if isinstance(suffixes, str) else suffixes
        paths = (entry.path for entry in self.root.list(path))
        broken = self.root.broken(path)
        return self._found.add(path, paths, suffixes, role, also, broken)


def pair(
    images: Mapping[str, str],
    labels: Mapping[str, str],
    key: Callable[[str], str],
    extras: Mapping[str, dict[str, Any]] | None = None,
) -> Listing:
    """Pairs images and labels, both name -> path, that have the same name.

    Extras are `Source.extra` by name, from the dataset's JSON, which must name every label; None
    where labels need none.
    """
    known = labels.keys() if extras is None else labels.keys() & extras.keys()
    left_out = [LeftOut(labels[name], "no entry in the JSON") for name in labels.keys() - known]
    for name in images.keys() - known:
        reason = "its label has no entry in the JSON" if name in labels else "no label"
        left_out.append(LeftOut(images[name], reason))
    left_out += [LeftOut(labels[name], "no image") for name in known - images.keys()]
    return Listing.of(
        (
            Source(key(name), images[name], labels[name], (extras or {}).get(name, {}))
            for name in sorted(images.keys() & known)
        ),
        left_out,
    )


def safe_key(*parts: str) -> str:
    """Joins names into a WebDataset key: lower case, no dots, no leading "-" or "_".

    A key depends on these names alone. Wherever making it safe could have made two names equal, it
    ends in a hash of the original: `("val", "_aB")` -> `val__ab-7f7c824e`.
    """
    assert parts
    clean = [re.sub(r"[^a-z0-9_-]", "_", part.lower()).strip("_-") for part in parts]
    key = "__".join(part or "x" for part in clean)
    unchanged = tuple(clean) == parts and not any("__" in part or not part for part in parts)
    if unchanged and len(key) <= _MAX_KEY_CHARS:
        return key
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
    return f"{key[: _MAX_KEY_CHARS - 9]}-{digest}"


def _is_of_other_split(name: str, split: Split) -> bool:
    """Whether a path goes through a folder of another split than this one."""
    folders = {part.lower() for part in re.split(r"[/\\]", name)[:-1]}
    return any(folders & {*names} for other, names in _SPLIT_FOLDERS.items() if other != split)


def check_split_names(splits: Iterable[str]) -> None:
    """Checks the setting `splits`.

    Raises:
        UserError: A name is not that of a split.
    """
    for split in splits:
        if split not in ALL_SPLITS:
            raise UserError(
                f"splits={split!r}: must be among {', '.join(ALL_SPLITS)}"
                f"{did_you_mean(split, ALL_SPLITS)}"
            )


def has_folders(root: Storage, base: str, *folders: str) -> bool:
    """Whether every one of some folders, such as "images/10k", is in a folder of a storage."""
    paths = (f"{base}/{folder}".strip("/").rpartition("/") for folder in folders)
    return all(name in root.folders(parent) for parent, _, name in paths)
