"""Finding images: by name, folder, pattern or `s3://` prefix, and what their results are called.

What there is by its literal name comes before any pattern, as in `photo[1].jpg`: local files and
folders, objects and prefixes alike.
"""

import glob
import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.data.pixels.formats import SUFFIXES
from pipeline.errors import UserError, printable
from pipeline.inference.photos import Photo
from pipeline.storage.names import is_hidden, why_unusable
from pipeline.storage.open import open_storage

MAX_NAME_BYTES = 180
"""Length of a result's name without its suffixes: file systems take 255 bytes for all of it."""

_SHOWN_SUFFIXES, _SHOWN_NAMES = 6, 3


@dataclass
class Search:
    """What some sources hold."""

    photos: list[Photo] = field(default_factory=list)
    is_batch: bool = False
    """A source was an `s3://` prefix or pattern, which may hold any number of images."""
    others: list[str] = field(default_factory=list)
    """Files of the folders and prefixes that are no images by their names; hidden ones not."""

    def remark(self, is_result: Callable[[str], bool] = lambda uri: False) -> str:
        """What to say of files that are not segmented; nothing where all are, or are results."""
        left: dict[str, list[str]] = {}
        for uri in self.others:
            if not is_result(uri):
                name = PurePosixPath(uri).name
                left.setdefault(PurePosixPath(name).suffix.lower(), []).append(printable(name))
        if not left:
            return ""
        kinds = sorted(left, key=lambda suffix: -len(left[suffix]))
        shown = []
        for suffix in kinds[:_SHOWN_SUFFIXES]:
            names = left[suffix]
            more = ", ..." if len(names) > _SHOWN_NAMES else ""
            words = f"{len(names)} {suffix or 'without a suffix'}"
            shown.append(f"{words} ({', '.join(names[:_SHOWN_NAMES])}{more})")
        if len(kinds) > _SHOWN_SUFFIXES:
            shown.append(f"{sum(len(left[kind]) for kind in kinds[_SHOWN_SUFFIXES:])} more")
        return f"not segmented, since they are no images by their names: {', '.join(shown)}"


def find_photos(sources: Sequence[str]) -> Search:
    """Finds images, each once, in the order of the sources and of their names.

    Args:
        sources: Files, folders (searched at any depth), patterns (`*`, `?`, `[..]`, `**`), each
            local or `s3://`. Hidden files, and thumbnails of a NAS, are found by their names only.

    Raises:
        UserError: A source has no image, or two images would have one name.
    """
    if not sources:
        raise UserError("images: none given: name files, folders, patterns or s3:// prefixes")
    search = Search()
    found: dict[str, Photo] = {}
    for source in sources:
        look = _look_in_s3 if source.startswith("s3://") else _look_here
        photos = look(source, search)
        if not photos:
            raise UserError(
                f"images={source}: there is no such file, or no image in it: must be a file, a "
                f"folder, a pattern or an s3:// prefix with {', '.join(sorted(SUFFIXES))}"
            )
        for photo in photos:
            found.setdefault(photo.uri, photo)
    search.photos = _named_apart(list(found.values()))
    return search


def _look_here(source: str, search: Search) -> list[Photo]:
    source = os.path.expanduser(source.removeprefix("file://"))
    if os.path.isfile(source):  # whatever its suffix: it was named
        return [_photo(os.path.dirname(os.path.abspath(source)), os.path.basename(source))]
    if os.path.isdir(source):
        return _all_in(os.path.abspath(source), search)
    if not glob.has_magic(source):
        return []
    folder, pattern = _split(source, os.path.isdir)
    root = os.path.abspath(folder or ".")
    paths = glob.glob(pattern, root_dir=root, recursive=True)
    files = sorted(path for path in paths if os.path.isfile(os.path.join(root, path)))
    return [_photo(root, path) for path in files if _is_image(path)]


def _look_in_s3(source: str, search: Search) -> list[Photo]:
    root = source.rstrip("/")
    if reason := why_unusable(root.removeprefix("s3://")):
        raise UserError(f"images={source}: {reason}, or name the prefix above it")
    folder, _, name = root.rpartition("/")
    is_object = root == source and folder.count("/") >= 2 and open_storage(folder).exists(name)
    if is_object:  # whatever its suffix: it was named
        return [_photo(folder, name)]
    search.is_batch = True
    if not glob.has_magic(source.removeprefix("s3://")):
        return _all_in(root, search)
    if root.count("/") > 2 and not open_storage(root).is_empty():
        return _all_in(root, search)
    folder, pattern = _split(source, lambda place: not open_storage(place).is_empty())
    if folder.count("/") < 2 or folder == "s3://":
        raise UserError(f"images={source}: must name a bucket: write s3://bucket/pattern")
    # Two `**` in a row say no more than one, and would be tried at every pair of places.
    wanted = [part for part, _ in itertools.groupby(pattern.split("/"))]
    paths = [entry.path for entry in open_storage(folder).list()]
    images = [path for path in paths if _is_image(path) and _matches(path.split("/"), wanted)]
    return [_photo(folder, path) for path in images]


def _all_in(root: str, search: Search) -> list[Photo]:
    """The images of a folder or prefix; what else it holds is noted."""
    photos = []
    storage = open_storage(root)
    for entry in storage.list():
        if _is_image(entry.path):
            photos.append(_photo(root, entry.path))
        elif not is_hidden(entry.path):
            search.others.append(f"{root}/{entry.path}")
    # Named at the end as what cannot be read.
    photos += [_photo(root, path) for path in storage.broken() if _is_image(path)]
    return photos


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES and not is_hidden(path)


def _split(source: str, is_folder: Callable[[str], bool]) -> tuple[str, str]:
    """The folders before the first that there is none of, so that it must be a pattern; the rest.

    Folders without a wildcard are not asked for.
    """
    parts = source.split("/")
    first = 0
    while first < len(parts) - 1:
        folder = "/".join(parts[: first + 1])
        if glob.has_magic(parts[first]) and not is_folder(folder):
            break
        first += 1
    folder = "/".join(parts[:first]) or ("/" if source.startswith("/") else "")
    return folder, "/".join(parts[first:])


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, by the rules that `glob` has here.

    `*` stays within a folder, `**` does not, and a bracket that is no set of letters is a letter.
    """
    if not patterns:
        return not parts
    if patterns[0] == "**":
        rest = patterns[1:]
        return any(_matches(parts[skipped:], rest) for skipped in range(len(parts) + (not rest)))
    is_first = bool(parts) and fnmatchcase(parts[0], patterns[0])
    return is_first and _matches(parts[1:], patterns[1:])


def _photo(root: str, path: str) -> Photo:
    return Photo(root, path, _short(str(PurePosixPath(path).with_suffix(""))))


def _named_apart(photos: list[Photo]) -> list[Photo]:
    """Gives images of one name their suffixes too, and a part of a digest where that is not enough.

    A name does not depend on the order, so that a later call finds what an earlier one has done.
    """
    photos = _renamed(photos, lambda photo: _short(photo.path))
    seen: dict[str, Photo] = {}
    for photo in photos:
        other = seen.setdefault(photo.name, photo)
        if other is not photo and other.path == photo.path:
            raise UserError(
                f"images: {other.uri} and {photo.uri} would both be written as {photo.name}: name "
                "the folder that holds both, or segment them one after the other"
            )
    return _renamed(photos, lambda photo: f"{_short(photo.path)}-{_digest(photo.uri)}")


def _renamed(photos: list[Photo], name: Callable[[Photo], str]) -> list[Photo]:
    """Gives those that have one name another."""
    counts = Counter(map(_folded, photos))
    return [replace(p, name=name(p)) if counts[_folded(p)] > 1 else p for p in photos]


def _folded(photo: Photo) -> str:
    """A name as the file systems see it that know neither case nor two spellings of a letter."""
    return unicodedata.normalize("NFC", photo.name).casefold()


def _short(path: str) -> str:
    """A path whose parts are short enough for a file system, also with the results' suffixes."""
    return "/".join(_short_part(part) for part in path.split("/"))


def _short_part(part: str) -> str:
    data = os.fsencode(part)
    if len(data) <= MAX_NAME_BYTES:
        return part
    return f"{data[: MAX_NAME_BYTES - 9].decode(errors='ignore')}-{_digest(part)}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
