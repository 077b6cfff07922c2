"""What a listing finds in the folders of a dataset, and why some of it becomes no sample.

Nothing that looks like an image or a mask goes without a word: two files of one name, names that
are no paths, and formats that are not read are each named with their reason.
"""

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.pixels.formats import SUFFIXES
from pipeline.storage.names import is_hidden, why_unusable

Role = Literal["image", "label"]

LOOKS_LIKE_AN_IMAGE = frozenset(
    ".pjpeg .apng .dib .jxl .jxr .jp2 .j2k .jpx .pbm .pnm .pam .tga .pcx .ico .xcf .psd .psb .exr "
    ".hdr .npy .npz .svg .heics .heifs .dng .cr2 .cr3 .nef .nrw .arw .raf .orf .rw2 .pef .srw .x3f "
    ".3fr .dcm .nii .fits".split()
).union(SUFFIXES)
"""Suffixes of images and masks in formats of all kinds, whether this project reads them or not."""
_NO_IMAGES = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .db .log .html .htm .pdf "
    ".py .ipynb .sh .license .sha256 .md5".split()
)
"""Suffixes of what lies beside images and holds none."""
_BROKEN = "is a link to nothing, or no plain file: fetch what it stands for, or remove it"
_SHOWN = 3


@dataclass(frozen=True)
class LeftOut:
    """A file that became no sample."""

    name: str
    """Path of the file, relative to the reader's root."""
    reason: str


@dataclass
class _Folder:
    """One folder, as it was listed for one kind of files."""

    path: str
    suffixes: tuple[str, ...]
    role: Role
    names: dict[str, str] = field(default_factory=dict)
    """Path in the root -> path within the folder, without the suffix."""
    twins: dict[str, list[str]] = field(default_factory=dict)
    """Name -> the paths of all files that have it; two or more."""


@dataclass
class FoundFiles:
    """The folders of one listing, and what is in them that cannot be used."""

    folders: list[_Folder] = field(default_factory=list)
    unusable: list[LeftOut] = field(default_factory=list)
    unread: list[LeftOut] = field(default_factory=list)
    """Files that look like images, and are not read."""
    strange: list[str] = field(default_factory=list)
    """Files of which their names do not say whether they are images."""

    def add(
        self,
        path: str,
        paths: Iterable[str],
        suffixes: tuple[str, ...],
        role: Role,
        also: tuple[str, ...] = (),
        broken: Iterable[str] = (),
    ) -> dict[str, str]:
        """Takes the files below a folder, and its `Storage.broken` ones; see `Reader._files`."""
        folder = _Folder(path, suffixes, role)
        self.folders.append(folder)
        first: dict[str, str] = {}
        for file in broken:
            is_meant = file.lower().endswith(tuple(end.lower() for end in suffixes))
            if is_meant and not is_hidden(file.removeprefix(f"{path}/")):
                self.unusable.append(LeftOut(file, _BROKEN))
        for file in paths:
            inner = file.removeprefix(f"{path}/")
            if is_hidden(inner):
                continue
            suffix = next((end for end in suffixes if inner.lower().endswith(end.lower())), "")
            if not suffix and not looks_like_an_image(inner):
                if posixpath.splitext(inner)[1].lower() not in _NO_IMAGES:
                    self.strange.append(file)
                continue
            if reason := why_unusable(file):
                self.unusable.append(LeftOut(file, reason))
            elif not suffix:
                if not inner.lower().endswith(tuple(end.lower() for end in also) or "\0"):
                    self.unread.append(LeftOut(file, _not_read(role, suffixes)))
            else:
                name = inner[: -len(suffix)]
                folder.names[file] = name
                if first.setdefault(name, file) is not file:
                    folder.twins.setdefault(name, [first[name]]).append(file)
        return {name: file for name, file in first.items() if name not in folder.twins}

    def nothing_fits(self) -> bool:
        """Whether there are images and labels, and no two of one name."""
        names: dict[Role, set[str]] = {"image": set(), "label": set()}
        for folder in self.folders:
            names[folder.role] |= {*folder.names.values()}
        return all(names.values()) and not names["image"] & names["label"]

    def left_out(self) -> list[LeftOut]:
        """The files that no listing can pair."""
        twins = [
            LeftOut(file, f"has the name of {', '.join(other for other in files if other != file)}")
            for folder in self.folders
            for files in folder.twins.values()
            for file in files
        ]
        return [*self.unusable, *twins]

    def explained(self, left_out: Iterable[LeftOut], any_paired: bool) -> list[LeftOut]:
        """Says of a file without its partner what the partner would be, where that helps."""
        wanted: dict[str, Role] = {"no image": "image", "no label": "label"}
        return [
            LeftOut(bad.name, self._why_alone(bad.name, wanted[bad.reason], any_paired))
            if bad.reason in wanted
            else bad
            for bad in left_out
        ]

    def _why_alone(self, path: str, wanted: Role, any_paired: bool) -> str:
        name = next((f.names[path] for f in self.folders if path in f.names), None)
        partners = [f for f in self.folders if f.role == wanted and path not in f.names]
        if name is None or not partners:
            return f"no {wanted}"
        for folder in partners:
            if twins := folder.twins.get(name):
                return f"no {wanted} of one meaning: {', '.join(twins)} have one name"
        expected = " or ".join(
            posixpath.join(partners[0].path, f"{name}{suffix}")
            for suffix in partners[0].suffixes[:2]
        )
        stems = tuple(posixpath.join(f.path, name) for f in partners)
        alike = [bad.name for bad in self.unread if bad.name.startswith(stems)]
        if alike:
            return f"no {wanted} {expected}; {alike[0]} is there, which is not read"
        for folder in partners:
            for file, other in folder.names.items():
                if other != name and _folded(other) == _folded(name):
                    return f"no {wanted}: {file} is spelt otherwise (case, or accents): rename one"
        return f"no {wanted}" if any_paired else f"no {wanted}: {expected} is not there"


def looks_like_an_image(path: str) -> bool:
    """Whether a file's suffix is that of an image or a mask in any format."""
    return posixpath.splitext(path)[1].lower() in LOOKS_LIKE_AN_IMAGE


def _folded(name: str) -> str:
    """A name as the file systems see it that know neither case nor two spellings of a letter."""
    return unicodedata.normalize("NFC", name).casefold()


def summary_of(unread: Sequence[LeftOut]) -> str:
    """One line about files that are not read: how many of which suffix, and the first few."""
    counts = Counter(posixpath.splitext(bad.name)[1] for bad in unread)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    names = ", ".join(sorted(bad.name for bad in unread)[:_SHOWN])
    more = ", ..." if len(unread) > _SHOWN else ""
    files = (
        "file looks like an image and is" if len(unread) == 1 else "files look like images and are"
    )
    return f"{len(unread)} {files} not read ({kinds}): {names}{more}"


def _not_read(role: Role, suffixes: tuple[str, ...]) -> str:
    kind = "an image" if role == "image" else "a label"
    if len(suffixes) > _SHOWN:  # Every format that is read, the commonest first.
        return f"is of a format that is not read: convert it to {' or '.join(suffixes[:2])}"
    names = ", ".join(f"*{suffix}" for suffix in suffixes)
    return f"is not read: {kind} is called {names} here: convert it, or rename it"
