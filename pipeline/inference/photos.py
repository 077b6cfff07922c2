"""Images of any origin, and how they are decoded.

Unlike the images of a dataset, whose labels lie in the orientation of the raw pixels, a photo is
turned as its EXIF tag says.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.pixels.checks import MAX_PIXELS, bad_sample_errors
from pipeline.data.pixels.encode import decode_image
from pipeline.data.pixels.formats import decoded_formats
from pipeline.storage.open import open_storage

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photo:
    """The place of an image, and the name of its results."""

    root: str
    """A storage: a folder, or `s3://bucket/prefix`."""
    path: str
    """Path within the storage."""
    name: str
    """Path without suffix, and more of it where two images would otherwise have the same name."""

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
    formats = decoded_formats()
    with bad_sample_errors("the image"), Image.open(io.BytesIO(data), formats=formats) as header:
        # Pillow turns a TIFF itself, and would decode a PNG for a tag that it lacks.
        has_tag = header.format in ("JPEG", "MPO", "WEBP", "AVIF") or b"eXIf" in data[: 1 << 16]
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
