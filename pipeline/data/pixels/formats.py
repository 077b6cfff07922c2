"""Which image formats are decoded, and by which suffixes their files are known.

HEIC needs the package pillow-heif, AVIF a Pillow that was built with it. A file of either kind is
named as what it is where it cannot be decoded.
"""

import re
from functools import cache

from PIL import features

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .ppm .pgm .mpo .gif .heic .heif .hif .avif"
    "".split()
)
"""Suffixes, in lower case, of the files that are taken for images in a folder."""

_ALWAYS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")  # Others run programs, or are none.
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


_LFS_POINTER = b"version https://git-lfs"
# What is taken is not given back: another split of the same spaces would fit no better.
_PPM_SPACE = rb"(?:\s|#[^\r\n]*+[\r\n])++"
_PPM_HEADER = re.compile(rb"P\d" + (_PPM_SPACE + rb"\d++") * 2 + rb"\s")
_MAX_PPM_HEADER = 4096
"""Bytes; Pillow reads a header one byte at a time, and comments in it may be of any length."""


@cache
def decoded_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded here."""
    found = [*_ALWAYS, *(["AVIF"] if features.check("avif") else [])]
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:
        return tuple(found)
    register_heif_opener()
    return (*found, "HEIF")


def unread_reason(data: bytes) -> str:
    """Why a whole file of a known format is not decoded here; empty where nothing is known."""
    if data.startswith(_LFS_POINTER):
        return "a pointer of Git LFS in its place: fetch it with git lfs pull"
    if data[:1] == b"P" and data[1:2].isdigit():
        if _PPM_HEADER.match(data[:_MAX_PPM_HEADER]):
            return ""
        return (
            f"a PPM whose header is longer than {_MAX_PPM_HEADER} bytes: save it without comments"
        )
    if data[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        if "AVIF" in decoded_formats():
            return ""
        return "AVIF, which this Pillow does not read: install a newer one, or convert it to JPEG"
    if brands & _HEIC_BRANDS and "HEIF" not in decoded_formats():
        return "HEIC, which needs the package pillow-heif: install it, or convert it to JPEG"
    return ""
