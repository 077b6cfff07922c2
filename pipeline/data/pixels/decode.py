"""From the bytes of a stored sample to arrays, at the least cost.

JPEGs are decoded by libjpeg-turbo, at a power-of-two fraction of their size where a crop needs no
more. Labels as this project writes them (8-bit grey PNG, filter NONE) need only to be inflated,
which takes a quarter of a PNG decoder's time; other PNGs go to OpenCV.
"""

import io
import os
import struct

# OpenCV refuses larger images from their header; it reads the variable when it is loaded.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

import cv2
import numpy as np
import simplejpeg
from isal import isal_zlib
from PIL import Image

from pipeline.data.pixels.checks import BadSample, check_chunks, check_size, reason_of
from pipeline.data.pixels.scans import check_scans, takes_one_pass
from pipeline.data.taxonomy import IGNORE

# Loader processes run side by side; OpenCV's own threads would only fight each other.
cv2.setNumThreads(1)

MAX_STORED_PIXELS = 1 << 27
"""Larger images are refused from their header."""
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_GREY_8_BIT = b"\x08\0\0\0\0"
"""End of an IHDR: bit depth, colour type grey, and the only methods there are; not interlaced."""
_IDAT = 33
"""Where the first chunk after the IHDR begins."""


def decode(jpeg: bytes, png: bytes, num_classes: int = IGNORE) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one stored sample, whose label has ids of this many classes.

    Returns:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8, universal ids or IGNORE.

    Raises:
        BadSample: Either does not decode, their sizes differ, or an id is that of no class.
    """
    label = decode_label(png, num_classes)
    return decode_jpeg(jpeg, label.shape), label


def decode_jpeg(
    jpeg: bytes, size: tuple[int, ...], shrink: int = 1, buffer: np.ndarray | None = None
) -> np.ndarray:
    """Decodes a JPEG.

    Args:
        jpeg: The file.
        size: Height and width that it must have: those of its label.
        shrink: 1, 2, 4 or 8: each side becomes 1/shrink of the stored one, rounded up.
        buffer: (n,) uint8 to decode into, large enough; by default new memory.

    Returns:
        (at least H // shrink, at least W // shrink, 3) uint8 RGB, in `buffer` where possible.

    Raises:
        BadSample: It does not decode, is too large, or has another size.
    """
    if not jpeg:
        raise BadSample("the jpg is empty")
    height, width = _size_of(jpeg)
    check_size("the jpg", width, height, MAX_STORED_PIXELS)
    if not takes_one_pass(jpeg):  # As nearly every file does.
        check_scans("the jpg", jpeg)
    if (height, width) != size:
        raise BadSample(f"jpg is {(height, width)} but png is {size} (height, width)")
    # The decoder takes the smallest of its sizes that reaches both of these.
    least = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)
    try:
        return simplejpeg.decode_jpeg(
            jpeg, "RGB", min_height=least[0], min_width=least[1], buffer=buffer
        )
    except Exception:
        # The file may be odd but whole, as with stray bytes or a sampling that has no name: OpenCV,
        # which wrote the shards, sees whether pixels are missing.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = _decode_by_opencv("the jpg", jpeg, flags)
    if pixels.shape[:2] != size:
        raise BadSample(f"the jpg decodes to {pixels.shape[:2]}, not {size} (height, width)")
    return shrink_image(pixels, shrink)


def has_usual_sampling(jpeg: bytes) -> bool:
    """Whether the fast decoder knows how a JPEG's colours are sampled; others take a slow one."""
    try:
        simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except Exception:  # A KeyError for one sampling, a ValueError for the next.
        return False
    return True


def _size_of(jpeg: bytes) -> tuple[int, int]:
    """Height and width in a JPEG's header."""
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
        return int(height), int(width)
    except Exception:  # As it does for a sampling that it has no name for.
        try:
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as header:
                return header.height, header.width
        except Exception as error:
            raise BadSample(f"the jpg does not decode: {reason_of(error)}") from None


def _decode_by_opencv(what: str, data: bytes, flags: int) -> np.ndarray:
    check_chunks(what, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except Exception as error:
        raise BadSample(f"{what} does not decode: {reason_of(error)}") from None
    if pixels is None:
        raise BadSample(f"{what} does not decode")
    return pixels


def shrink_image(image: np.ndarray, shrink: int) -> np.ndarray:
    """Each pixel the mean of `shrink` x `shrink` pixels; what is left over at the end is dropped.

    Args:
        image: (H, W, 3) uint8.
        shrink: 1, 2, 4 or 8; at most H and W.

    Returns:
        (H // shrink, W // shrink, 3) uint8.
    """
    if shrink == 1:
        return image
    height, width = image.shape[0] // shrink, image.shape[1] // shrink
    whole = image[: height * shrink, : width * shrink]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def decode_label(png: bytes, num_classes: int = IGNORE) -> np.ndarray:
    """Decodes a label with ids of this many classes; by default with any.

    Returns:
        (H, W) uint8, universal ids or IGNORE; read-only, and its rows may have gaps.

    Raises:
        BadSample: It does not decode, is not 8-bit grey, or has an id of no class.
    """
    if not png:
        raise BadSample("the png is empty")
    label = _inflate_plain(png)
    if label is None:
        label = _decode_by_opencv("the png", png, cv2.IMREAD_UNCHANGED)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise BadSample(f"the png is {label.dtype} of shape {label.shape}, not 8-bit grey")
    # One more than each id, so that IGNORE wraps to 0; np.unique is for the bad ones alone.
    if num_classes < IGNORE and (label + np.uint8(1)).max() > num_classes:
        ids = [i for i in np.unique(label).tolist() if num_classes <= i < IGNORE]
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        raise BadSample(f"the png has ids {shown}: those of the {num_classes} classes end before")
    return label


def _inflate_plain(png: bytes) -> np.ndarray | None:
    """The pixels of a grey PNG with one IDAT and no filters; None for any other, and damaged ones.

    The data's own Adler-32 is checked.
    """
    if png[:16] != _PNG_START or png[24:29] != _GREY_8_BIT or png[_IDAT + 4 : _IDAT + 8] != b"IDAT":
        return None
    width, height = struct.unpack(">II", png[16:24])
    (length,) = struct.unpack(">I", png[_IDAT : _IDAT + 4])
    end = _IDAT + 8 + length
    if png[end + 8 : end + 12] != b"IEND" or not 0 < width * height <= MAX_STORED_PIXELS:
        return None
    size = height * (width + 1)
    inflater = isal_zlib.decompressobj()
    try:
        # One byte more than there should be, so that the end of the stream is reached.
        rows = inflater.decompress(png[_IDAT + 8 : end], size + 1)
    except isal_zlib.error:  # type: ignore[misc]
        return None
    if len(rows) != size or not inflater.eof:
        return None
    table = np.frombuffer(rows, np.uint8).reshape(height, width + 1)
    return None if table[:, 0].any() else table[:, 1:]
