"""What makes an image or a label unusable, whichever decoder finds it."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import UnidentifiedImageError

from pipeline.errors import printable

MAX_PIXELS = 80_000_000
"""Default limit of a label's or image's size, before it is decoded. The largest real ones have
about 22 million pixels. Kept below the size at which Pillow warns of decompression bombs."""


MAX_SIDE_PX = 8192
"""Limit of a side at which a network is asked to see images; a window of it has 67 million pixels,
of which each takes hundreds of bytes there."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_REASON = 300
"""Characters of a library's own words that a reason quotes; some quote the whole file."""


class BadSample(ValueError):
    """An image or label that cannot be used, in a download or in a shard; says what is wrong."""


class TooManyPixels(BadSample):
    """An image that is larger than it may be."""


@contextmanager
def bad_sample_errors(path: str) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged bytes into BadSample."""
    try:
        yield
    except BadSample:
        raise
    except Exception as error:  # Decoders raise a dozen kinds of them.
        raise BadSample(f"{path}: cannot be read: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What a surprise of a decoder or a parser says to a user, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # It names an object in memory.
        return "no image format that is known"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return printable(str(error))[:_MAX_REASON] or type(error).__name__


def check_size(path: str, width: int, height: int, max_pixels: int) -> None:
    """Refuses sizes that would fill the memory.

    Raises:
        BadSample: The size is empty or above the limit.
    """
    if width < 1 or height < 1 or width * height > max_pixels:
        kind = TooManyPixels if width * height > max_pixels else BadSample
        raise kind(f"{path}: {width} x {height} pixels: must be 1 to {max_pixels} pixels in all")


def check_chunks(path: str, data: bytes) -> None:
    """Refuses a PNG of which a chunk claims more bytes than there are: OpenCV takes them at once.

    Raises:
        BadSample: It is such a PNG; any other file passes.
    """
    position = len(_PNG_SIGNATURE) if data.startswith(_PNG_SIGNATURE) else len(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":  # What follows is not read.
            return
        position += 12 + length
        if position > len(data):
            raise BadSample(f"{path} does not decode: a chunk of {length} bytes is cut short")
