"""Label PNGs, decoded without ever guessing.

An index read through a wrong mode becomes another class without any error, so a file that is not
stored as its dataset stores labels is refused.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 80_000_000
"""Default limit of a label's or image's size, before it is decoded. The largest real ones have
about 22 million pixels. Kept below the size at which Pillow warns of decompression bombs."""


class BadSample(ValueError):
    """An image or label that cannot become a sample: the file, and what is wrong with it."""


@contextmanager
def bad_sample_errors(path: str) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged bytes into BadSample."""
    try:
        yield
    except BadSample:
        raise
    except (
        OSError,  # truncated data; not an image at all
        ValueError,
        SyntaxError,  # a broken PNG chunk
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        reason = "no image format that is known"
        if not isinstance(error, UnidentifiedImageError):  # It names an object in memory.
            reason = str(error)
        raise BadSample(f"{path}: cannot be read: {reason}") from error


def check_size(path: str, width: int, height: int, max_pixels: int) -> None:
    """Refuses sizes that would fill the memory.

    Raises:
        BadSample: The size is empty or above the limit.
    """
    if width < 1 or height < 1 or width * height > max_pixels:
        raise BadSample(
            f"{path}: {width} x {height} pixels: must be 1 to {max_pixels} pixels in all"
        )


def decode_index_png(
    data: bytes, path: str, modes: tuple[str, ...], max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes a PNG whose pixel values are ids.

    Args:
        data: The file.
        path: Names the file in errors.
        modes: The allowed Pillow modes: "L" (8-bit grey), "P" (palette index).
        max_pixels: The limit of its size.

    Returns:
        (H, W) uint8: the grey values or palette indices, never colours.

    Raises:
        BadSample: The file is damaged, too large, not a PNG, or in another mode.
    """
    with bad_sample_errors(path), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        check_size(path, image.width, image.height, max_pixels)
        # Byte 24 of a PNG is its bit depth. Pillow widens 2 and 4-bit grey to 0..255.
        narrow_grey = image.mode == "L" and data[24] != 8
        if image.mode not in modes or narrow_grey:
            raise BadSample(
                f"{path}: a PNG of mode {image.mode} with {data[24]} bits: must be 8-bit "
                f"{' or '.join(_MODE_NAMES[mode] for mode in modes)}"
            )
        return np.asarray(image)


def decode_rgb_png(data: bytes, path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG whose colours carry ids.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadSample: The file is damaged, too large, not a PNG, or not 8-bit RGB.
    """
    with bad_sample_errors(path), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        check_size(path, image.width, image.height, max_pixels)
        # Pillow opens 16-bit RGB as RGB too, and drops the low bytes.
        if image.mode != "RGB" or data[24] != 8:
            raise BadSample(
                f"{path}: a PNG of mode {image.mode} with {data[24]} bits: must be 8-bit RGB"
            )
        return np.asarray(image)


def decode_16bit_png(data: bytes, path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG of 16-bit numbers.

    Returns:
        (H, W) int64.

    Raises:
        BadSample: The file is damaged, too large, not a PNG, or not 16-bit grey.
    """
    with bad_sample_errors(path), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        check_size(path, image.width, image.height, max_pixels)
        if not image.mode.startswith("I") or data[24] != 16:
            raise BadSample(
                f"{path}: a PNG of mode {image.mode} with {data[24]} bits: must be 16-bit grey"
            )
        return np.asarray(image).astype(np.int64)


_MODE_NAMES = {"L": "grey (L)", "P": "palette (P)"}
