"""How many scans a JPEG has: each costs the decoder a pass over the whole image.

The bytes of a scan say little about its cost: a file of 1 MB with a header of 24 megapixels can
hold 20,000 of them and take minutes. libjpeg has no limit of its own.
"""

import re

from pipeline.data.pixels.checks import BadSample

MAX_SCANS = 50
"""Encoders write 1 to about 20, also those that search for the best split."""

_MARKER = re.compile(rb"\xff([^\x00\xff])")  # Without the fill bytes before it: in linear time.
_SOS, _EOI = 0xDA, 0xD9
_FIRST_WITH_LENGTH = 0xC0
"""Markers below it, and those of restarts, stand alone."""
_ALONE = range(0xD0, 0xD9)
_SEQUENTIAL = (0xC0, 0xC1)
"""Frames coded by Huffman in one pass: baseline and extended."""
_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
"""Progressive, lossless, hierarchical and arithmetic ones."""


def check_scans(path: str, jpeg: bytes) -> None:
    """Refuses a JPEG that takes longer to decode than its size allows.

    Raises:
        BadSample: It has more than MAX_SCANS scans.
    """
    # Most files do not hold the bytes of so many scan headers; only for others each must be found.
    if jpeg.count(b"\xff\xda") > MAX_SCANS and count_scans(jpeg, MAX_SCANS + 1) > MAX_SCANS:
        raise BadSample(
            f"{path} is a JPEG of more than {MAX_SCANS} scans, each of which costs a pass over it: "
            "save it anew"
        )


def takes_one_pass(jpeg: bytes) -> bool:
    """Whether a decoder makes one pass over a JPEG, whatever its data holds.

    So it does where the first scan of a sequential JPEG has all components: libjpeg takes no other
    scan then. This reads a few segments of the header, where `check_scans` reads the whole file.
    """
    position, components = 2, b""
    while marker := _MARKER.match(jpeg, position):
        kind, position = marker[1][0], marker.end()
        if kind == _SOS:
            return bool(components) and jpeg[position + 2 : position + 3] == components
        if kind in _SEQUENTIAL:
            components = jpeg[position + 7 : position + 8]
        elif kind in _OTHER_FRAMES or kind in _ALONE or kind < _FIRST_WITH_LENGTH or kind == _EOI:
            return False
        position += int.from_bytes(jpeg[position : position + 2], "big")
    return False


def count_scans(jpeg: bytes, most: int) -> int:
    """Counts the scans up to the end of the first image in a file, or up to `most`.

    Those of thumbnails, which lie within segments, are not counted.
    """
    position, found = 2, 0
    while found < most and (marker := _MARKER.search(jpeg, position)):
        kind, position = marker[1][0], marker.end()
        if kind == _EOI:
            break
        if kind < _FIRST_WITH_LENGTH or kind in _ALONE:
            continue
        found += kind == _SOS
        position += int.from_bytes(jpeg[position : position + 2], "big")
    return found
