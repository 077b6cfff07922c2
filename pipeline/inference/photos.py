"""Images of any origin: finding them by name, folder, pattern or `s3://` prefix, decoding them.

Unlike the images of a dataset, whose labels lie in the orientation of the raw pixels, a photo is
turned as its EXIF tag says.
"""

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from pipeline.data.pixels.checks import MAX_PIXELS, bad_sample_errors
from pipeline.data.pixels.encode import decode_image
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

SUFFIXES = frozenset(".jpg .jpeg .png .webp .tif .tiff .bmp .ppm .pgm .mpo".split())
"""Suffixes of the files that are taken for images in a folder, in either case."""

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photo:
    """The place of an image, and the name of its results."""

    root: str
    """A storage: a folder, or `s3://bucket/prefix`."""
    path: str
    """Path within the storage."""
    name: str
    """Path without suffix; with it where two images would otherwise have the same name."""

    @property
    def uri(self) -> str:
        """Place of the image."""
        return f"{self.root}/{self.path}"

    def read(self) -> bytes:
        """Reads the file.

        Raises:
            FileNotFoundError: It is no longer there.
            UserError: The storage refuses.
        """
        return open_storage(self.root).read(self.path)


def find_photos(sources: Sequence[str]) -> list[Photo]:
    """Finds images, each once, in the order of the sources and of their names.

    Args:
        sources: Files, folders (searched at any depth), patterns (`*`, `?`, `[..]`, `**`), each
            local or `s3://`.

    Raises:
        UserError: A source has no image, or two images would have one name.
    """
    if not sources:
        raise UserError("images: none given: name files, folders, patterns or s3:// prefixes")
    found: dict[str, Photo] = {}
    for source in sources:
        photos = _s3_photos(source) if source.startswith("s3://") else _local_photos(source)
        if not photos:
            raise UserError(
                f"images={source}: there is no such file, or no image in it: must be a file, a "
                f"folder, a pattern or an s3:// prefix with {', '.join(sorted(SUFFIXES))}"
            )
        for photo in photos:
            found.setdefault(photo.uri, photo)
    return _named_apart(list(found.values()))


def is_batch(sources: Iterable[str]) -> bool:
    """Whether a source is an `s3://` prefix or pattern, which may hold any number of images."""
    return any(
        source.startswith("s3://") and (glob.has_magic(source) or not _named(source))
        for source in sources
    )


def decode_photo(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image of any common format and colour mode, the right way up.

    Args:
        data: The file.
        max_pixels: Refuse larger images, before decoding.

    Returns:
        (H, W, 3) uint8 RGB; grey repeated, CMYK and palettes converted, alpha dropped, the upper 8
        of 16 bits kept.

    Raises:
        BadSample: It is none, is too large, is cut short, or does not decode.
    """
    pixels = decode_image(data, max_pixels)[:, :, ::-1]
    with bad_sample_errors("the image"), Image.open(io.BytesIO(data)) as header:
        # Pillow turns a TIFF itself, and would decode a PNG for a tag that it lacks.
        has_tag = header.format in ("JPEG", "MPO", "WEBP") or b"eXIf" in data[: 1 << 16]
        orientation = header.getexif().get(_ORIENTATION, 1) if has_tag else 1
    return np.ascontiguousarray(_turned(pixels, orientation))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors as the eight EXIF orientations say; any other leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _local_photos(source: str) -> list[Photo]:
    source = os.path.expanduser(source.removeprefix("file://"))
    if os.path.isfile(source):  # whatever its suffix: it was named
        return [_photo(os.path.dirname(os.path.abspath(source)), os.path.basename(source))]
    if os.path.isdir(source):
        root = os.path.abspath(source)
        entries = open_storage(root).list()
        return [_photo(root, entry.path) for entry in entries if _named(entry.path)]
    if not glob.has_magic(source):
        return []
    root = os.path.abspath(_fixed_folder(source) or ".")
    files = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
    paths = [os.path.relpath(os.path.abspath(path), root) for path in files]
    return [_photo(root, path) for path in paths if _named(path)]


def _named(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _s3_photos(source: str) -> list[Photo]:
    if glob.has_magic(source.removeprefix("s3://")):
        root = _fixed_folder(source)
        if root.count("/") < 2 or root == "s3://":
            raise UserError(f"images={source}: must name a bucket: write s3://bucket/pattern")
        wanted = _pattern(source.removeprefix(f"{root}/"))
        paths = [entry.path for entry in open_storage(root).list()]
        return [_photo(root, path) for path in paths if wanted.fullmatch(path) and _named(path)]
    root = source.rstrip("/")
    folder, _, name = root.rpartition("/")
    if _named(name) and folder.count("/") >= 2 and open_storage(folder).exists(name):
        return [_photo(folder, name)]
    return [_photo(root, entry.path) for entry in open_storage(root).list() if _named(entry.path)]


def _fixed_folder(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "")


def _pattern(pattern: str) -> re.Pattern[str]:
    """A pattern over whole paths, in which `*` stays within a folder and `**/` does not."""
    tokens = re.split(r"(\*\*/|\*|\?|\[[^\]/]+\])", pattern)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = [
        meaning.get(token)
        or (token.replace("[!", "[^") if token.startswith("[") else re.escape(token))
        for token in tokens
    ]
    return re.compile("".join(parts))


def _photo(root: str, path: str) -> Photo:
    return Photo(root, path, str(PurePosixPath(path).with_suffix("")))


def _named_apart(photos: list[Photo]) -> list[Photo]:
    # Case is ignored: many file systems do not know two names that differ in case alone.
    counts = Counter(photo.name.lower() for photo in photos)
    photos = [replace(p, name=p.path) if counts[p.name.lower()] > 1 else p for p in photos]
    seen: dict[str, Photo] = {}
    for photo in photos:
        other = seen.setdefault(photo.name.lower(), photo)
        if other is not photo:
            raise UserError(
                f"images: {other.uri} and {photo.uri} would both be written as {photo.name}: name "
                "the folder that holds both, or segment them one after the other"
            )
    return photos
