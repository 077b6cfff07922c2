"""Label PNGs of the official downloads, decoded without ever guessing.

An index read through a wrong mode becomes another class without any error, so a file that is not
stored as its dataset stores labels is refused.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from pipeline.data.pixels.checks import MAX_PIXELS, BadSample, bad_sample_errors, check_size
from pipeline.data.pixels.formats import unread_reason

_MODE_NAMES = {"L": "grey (L)", "P": "palette (P)"}


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

    def fits(mode: str, bits: int) -> bool:
        # Pillow widens 2 and 4-bit grey to 0..255.
        return mode in modes and (mode != "L" or bits == 8)

    wanted = " or ".join(_MODE_NAMES[mode] for mode in modes)
    return _decode_png(data, path, max_pixels, fits, f"8-bit {wanted}")


def decode_rgb_png(data: bytes, path: str) -> np.ndarray:
    """Decodes a PNG whose colours carry ids.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadSample: The file is damaged, too large, not a PNG, or not 8-bit RGB.
    """
    # Pillow opens 16-bit RGB as RGB too, and drops the low bytes.
    return _decode_png(data, path, MAX_PIXELS, lambda *found: found == ("RGB", 8), "8-bit RGB")


def decode_16bit_png(data: bytes, path: str) -> np.ndarray:
    """Decodes a PNG of 16-bit numbers.

    Returns:
        (H, W) int64.

    Raises:
        BadSample: The file is damaged, too large, not a PNG, or not 16-bit grey.
    """

    def fits(mode: str, bits: int) -> bool:
        return mode.startswith("I") and bits == 16

    return _decode_png(data, path, MAX_PIXELS, fits, "16-bit grey").astype(np.int64)


def decode_16bit_ids(data: bytes, path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a TIFF or PNG whose pixels are ids of 16 bits.

    Returns:
        (H, W) uint16.

    Raises:
        BadSample: The file is damaged, too large, of another format, or not 16-bit grey: 8 bits
            would turn every id above 255 into another class.
    """
    with (
        bad_sample_errors(path),
        Image.open(io.BytesIO(data), formats=["PNG", "TIFF"]) as image,
    ):
        check_size(path, image.width, image.height, max_pixels)
        if not image.mode.startswith("I;16") and not (image.format == "PNG" and data[24] == 16):
            raise BadSample(f"{path}: of mode {image.mode}: must be 16-bit grey")
        ids = np.asarray(image)
        if ids.ndim != 2:
            raise BadSample(f"{path}: has {ids.ndim} dimensions: must be 16-bit grey")
        return ids.astype(np.uint16)


def _decode_png(
    data: bytes, path: str, max_pixels: int, fits: Callable[[str, int], bool], wanted: str
) -> np.ndarray:
    """Decodes a PNG whose Pillow mode and bits a channel fit."""
    if not data:
        raise BadSample(f"{path}: cannot be read: it is empty")
    if reason := unread_reason(data):
        raise BadSample(f"{path}: is {reason}")
    with bad_sample_errors(path), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        check_size(path, image.width, image.height, max_pixels)
        bits = data[24]  # The bit depth of a PNG.
        if not fits(image.mode, bits):
            raise BadSample(
                f"{path}: a PNG of mode {image.mode} with {bits} bits: must be {wanted}"
            )
        return np.asarray(image)
