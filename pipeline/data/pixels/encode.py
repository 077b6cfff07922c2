"""From one source image and its mapped label to the bytes that a shard stores.

Knows the image formats' traps. A JPEG that is RGB already and need not shrink keeps its compressed
data, so nothing is lost by a second compression. EXIF orientation is ignored, because the datasets
store their labels in the orientation of the raw pixels; where a tag asks for a rotation it is taken
out, so that no later reader turns an image away from its label. Labels are PNGs with filter NONE:
label maps compress nearly as well without filters, and decode in about half the time.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from pipeline.data.pixels.checks import (
    MAX_PIXELS,
    BadSample,
    bad_sample_errors,
    check_chunks,
    check_size,
)
from pipeline.data.pixels.decode import has_usual_sampling
from pipeline.data.pixels.formats import decoded_formats, unread_reason
from pipeline.data.pixels.scans import check_scans

_PNG_LEVEL = 3  # In zlib 1.2.13 the fastest to decode, and the last before writing gets slow.
_ORIENTATION = 0x0112  # The EXIF tag.
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1  # Second bytes of JPEG markers; the first is 0xFF.

WELL_ABOVE = 1.5
"""So many times the side that training uses: from there on smaller files are cheaper to load."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image of any common format and colour mode to 8-bit colour.

    Grey is repeated over the channels, CMYK and palettes are converted, alpha is dropped, and of
    16 bits the upper 8 are kept.

    Args:
        data: The file.
        max_pixels: Refuse larger images; their size is read from the header, before decoding.

    Returns:
        (H, W, 3) uint8 BGR in the orientation of the file, not of its EXIF tag.

    Raises:
        BadSample: It is none, is too large, is cut short, or does not decode.
    """
    header, is_jpeg = _open_image(data, max_pixels)
    if header.mode == "RGB" and (is_jpeg or header.format == "PNG"):
        return _decode_by_opencv(header, data, cv2.IMREAD_COLOR)
    return _decode_other(header)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of an image, from its header, in the orientation of the file.

    Raises:
        BadSample: It is none, is too large, or is cut short as far as that shows without decoding.
    """
    header, _ = _open_image(data, max_pixels)
    return header.height, header.width


def exif_orientation(data: bytes) -> int:
    """How an image asks to be shown, 1 to 8 as EXIF counts; 1, as it is stored, without a tag.

    Read from the header alone. Damaged EXIF has no effect, and counts as 1.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            turn = header.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in range(2, 9) else 1


def keep_jpeg(
    data: bytes, short_side_px: int, long_side_px: int = 0
) -> tuple[bytes, tuple[int, int]] | None:
    """Checks an image that can be stored as it is, for half the cost of `decode_image`.

    Args:
        data: The file.
        short_side_px: Larger images must be shrunk.
        long_side_px: Images well above it must be shrunk too; see `shrunk_size`.

    Returns:
        The JPEG free of any EXIF orientation, and its height and width; None when the image must be
        decoded and compressed anew.

    Raises:
        BadSample: The image cannot be used; see `decode_image`.
    """
    header, is_jpeg = _open_image(data, MAX_PIXELS)
    size = header.height, header.width
    # Others than the usual samplings are compressed anew: few readers of shards decode them.
    if (
        not is_jpeg
        or not has_usual_sampling(data)
        or header.mode != "RGB"
        or shrunk_size(size[0], size[1], short_side_px, long_side_px) != size
    ):
        return None
    # An eighth of the size: all of the data is read, but most of the arithmetic left out.
    _decode_by_opencv(header, data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return _without_orientation(data), size


def _open_image(data: bytes, max_pixels: int) -> tuple[Image.Image, bool]:
    """The header of an image whose size is allowed, and whether it is a JPEG, which is whole."""
    if not data:
        raise BadSample("the image: cannot be read: it is empty")
    if reason := unread_reason(data):
        raise BadSample(f"the image is {reason}")
    with bad_sample_errors("the image"):
        header = Image.open(io.BytesIO(data), formats=decoded_formats())
    check_size("the image", *header.size, max_pixels)
    # A stereo or phone JPEG (MPO) is a JPEG with more images behind the first.
    is_jpeg = header.format in ("JPEG", "MPO")
    if is_jpeg and data.find(bytes((0xFF, _EOI)), _scan_start(data)) < 0:
        raise BadSample("the image is a JPEG cut short")
    if is_jpeg:
        check_scans("the image", data)
    return header, is_jpeg


def _decode_by_opencv(header: Image.Image, data: bytes, flags: int) -> np.ndarray:
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    check_chunks("the image", data)
    with bad_sample_errors("the image"):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise BadSample(f"the image is a {header.format} that does not decode")
    return pixels


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Compresses an image, (H, W, 3) uint8 BGR, by a quality of 1..100."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def encode_label(label: np.ndarray) -> bytes:
    """Writes (H, W) uint8 ids as an 8-bit grey PNG whose rows all have filter NONE."""
    height, width = label.shape
    rows = np.zeros((height, width + 1), np.uint8)  # Column 0 holds each row's filter type, 0.
    rows[:, 1:] = label
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, _PNG_LEVEL)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def shrunk_size(
    height: int, width: int, short_side_px: int, long_side_px: int = 0
) -> tuple[int, int]:
    """The size to store: the given one, or a smaller one of the same shape.

    Args:
        height: Pixels of the image, downwards.
        width: Pixels of the image, across.
        short_side_px: Most that the short side may have.
        long_side_px: What the long side gets in images that are well above it (`WELL_ABOVE`);
            compressing others anew would cost sharpness and save little. 0 for none.
    """
    scale = short_side_px / min(height, width)
    if long_side_px and max(height, width) >= WELL_ABOVE * long_side_px:
        scale = min(scale, long_side_px / max(height, width))
    if scale >= 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrinks (H, W, 3) uint8 to `size` (height, width), each pixel the mean of its area."""
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrinks (H, W) uint8 ids to `size`, each pixel the id at the centre of its area."""
    # INTER_NEAREST takes the area's corner instead, half a pixel off from the image.
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def _decode_other(header: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 BGR of what OpenCV reads wrongly or not at all."""
    if header.mode == "F":
        raise BadSample("the image has floating-point pixels: must be 8 or 16-bit integers")
    with bad_sample_errors("the image"):
        if not header.mode.startswith("I"):
            return np.ascontiguousarray(np.asarray(header.convert("RGB"))[:, :, ::-1])
        grey = np.asarray(header).astype(np.int64)  # 16 bits: Pillow would clip them, not scale.
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadSample("the image has more than 16 bits a channel: must be 8 or 16-bit integers")
    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment after SOI, up to and including the first scan's header.

    Raises:
        BadSample: The chain of segments breaks.
    """
    position = 2
    while True:
        while data[position : position + 2] == b"\xff\xff":  # Fill bytes may precede a marker.
            position += 1
        if position + 4 > len(data) or data[position] != 0xFF:
            raise BadSample("the image is a JPEG with a damaged header")
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield data[position + 1], position, end
        if data[position + 1] == _SOS:
            return
        position = end


def _scan_start(data: bytes) -> int:
    """Where the compressed pixels begin; 0xFFD9 cannot occur among them but as the end marker."""
    *_, (_, _, end) = _jpeg_segments(data)
    return end


def _without_orientation(data: bytes) -> bytes:
    """The JPEG itself, or without its EXIF segment where that asks for a rotation."""
    kept = bytearray(data[:2])
    rotated = False
    tail = 2
    for marker, start, end in _jpeg_segments(data):
        tail = end
        segment = data[start:end]
        if marker == _APP1 and segment[4:10] == b"Exif\0\0" and _turns(segment[4:]):
            rotated = True
        else:
            kept += segment
    return bytes(kept) + data[tail:] if rotated else data


def _turns(exif: bytes) -> bool:
    """Whether EXIF data asks for any orientation other than the stored one, or is unreadable."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return tags.get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # Damaged EXIF: dropping it is the only way to be sure.
        return True
