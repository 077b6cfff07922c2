"""Decoders of photos and labels, as targets of the fuzzer."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.data.pixels import official
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode_jpeg, decode_label
from pipeline.data.pixels.encode import encode_label, keep_jpeg
from pipeline.inference.photos import decode_photo
from tests.support.fuzz_target import Target
from tests.support.picture_mutators import jpeg_segments, png_chunks
from tests.support.real_samples import real_files
from tests.support.tiny_roots import noise


def pillow(image: np.ndarray, mode: str, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def jpegs() -> list[bytes]:
    """Baseline and progressive, with several samplings, grey, CMYK, with EXIF and restarts."""
    image = noise(48, 64, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"subsampling": 1}]
    options += [{"progressive": True}, {"exif": exif}, {"optimize": True}]
    found = [pillow(image, "RGB", "JPEG", quality=80, **given) for given in options]
    found += [pillow(image, "L", "JPEG"), pillow(image, "CMYK", "JPEG")]
    restarts = [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    found += real_files("faults/inputs/*.jpg", "samples/**/*.jpg", "real/*/images/val/*.jpg")
    return [*found, cv2.imencode(".jpg", image, restarts)[1].tobytes()]


def pngs() -> list[bytes]:
    """Labels as this project and others write them, colours, 16 bits, interlaced by no one."""
    label = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) % 7
    grey = label.astype(np.uint8)
    found = [encode_label(grey), cv2.imencode(".png", grey)[1].tobytes()]
    found += [cv2.imencode(".png", (label * 999).astype(np.uint16))[1].tobytes()]
    found += [pillow(grey, mode, "PNG") for mode in ("P", "1", "LA")]
    found += real_files("samples/**/*.png", largest=1 << 14)
    return [*found, pillow(noise(48, 64, 2), "RGB", "PNG"), pillow(noise(48, 64, 2), "RGBA", "PNG")]


def jpeg(folder: Path) -> list[Target]:
    """Photos of stored samples, as training reads them, and what the conversion keeps as it is."""

    def stored(data: bytes) -> None:
        for shrink in (1, 4):
            image = decode_jpeg(data, (48, 64), shrink)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3

    def kept(data: bytes) -> None:
        found = keep_jpeg(data, 1080)
        if found is None:
            return
        try:
            decode_jpeg(found[0], found[1])
        except BadSample as error:
            raise AssertionError(f"kept, but training cannot read it: {error}") from error

    given = (jpegs(), [jpeg_segments])
    return [
        Target("stored jpeg", given[0], stored, (BadSample,), given[1], memory_mib=1024),
        Target("kept jpeg", given[0], kept, (BadSample,), given[1], memory_mib=1024),
    ]


def photo(folder: Path) -> list[Target]:
    """Photos of any format, as predict, the service and the conversion read them."""
    image = noise(40, 50, 3)
    others = [pillow(image, "RGB", name) for name in ("WEBP", "TIFF", "BMP", "PPM", "GIF")]
    others += [pillow(image, "P", "GIF"), pillow(image, "L", "TIFF", compression="tiff_lzw")]
    others += [pillow(image, "RGB", "TIFF", compression="jpeg"), pillow(image, "RGB", "MPO")]

    def read(data: bytes) -> None:
        pixels = decode_photo(data)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.flags.c_contiguous

    return [
        Target("photo", jpegs(), read, (BadSample,), [jpeg_segments], memory_mib=1024),
        Target("photo png", pngs(), read, (BadSample,), [png_chunks], memory_mib=1024),
        Target("photo other", others, read, (BadSample,), memory_mib=1024),
    ]


def label(folder: Path) -> list[Target]:
    """Labels of shards and of the official downloads."""

    def read(data: bytes) -> None:
        found = decode_label(data)
        assert found.ndim == 2
        assert found.dtype == np.uint8

    def index(data: bytes) -> None:
        for decode in (
            lambda: official.decode_index_png(data, "x.png", ("L", "P")),
            lambda: official.decode_rgb_png(data, "x.png"),
            lambda: official.decode_16bit_png(data, "x.png"),
        ):
            with suppress(BadSample):
                assert decode().ndim in (2, 3)

    return [
        Target("stored label", pngs(), read, (BadSample,), [png_chunks], memory_mib=1024),
        Target("official label", pngs(), index, (), [png_chunks], memory_mib=2048),
    ]
