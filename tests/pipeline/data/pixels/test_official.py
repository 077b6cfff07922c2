import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.official import decode_index_png, decode_rgb_png
from tests.pipeline.data.datasets.conftest import jpg, png


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_palette_indices_not_colours():
    assert decode_index_png(png([[0, 5, 255]], "P"), "x", ("P",)).tolist() == [[0, 5, 255]]


def test_a_palette_of_few_bits_keeps_its_indices():
    image = Image.fromarray(np.array([[0, 3, 1, 2]], np.uint8))
    image.putpalette([9, 9, 9, 50, 0, 0, 0, 50, 0, 0, 0, 50])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=2)
    assert buffer.getvalue()[24] == 2
    assert decode_index_png(buffer.getvalue(), "x", ("P",)).tolist() == [[0, 3, 1, 2]]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_narrow_grey_is_refused(depth: int):
    data = raw_png(2, 1, depth, 0, b"\0\x50")
    with pytest.raises(BadSample, match="x: a PNG of mode"):
        decode_index_png(data, "x", ("L", "P"))


def test_colours_of_16_bits_are_refused():
    data = raw_png(1, 1, 16, 2, b"\0" + bytes(6))
    with pytest.raises(BadSample, match="16 bits: must be 8-bit RGB"):
        decode_rgb_png(data, "x")


def test_a_lossy_label_is_refused():
    with pytest.raises(BadSample, match="x: cannot be read"):
        decode_index_png(jpg(), "x", ("L",))


@pytest.mark.parametrize(
    "decode", [lambda d: decode_index_png(d, "x", ("L",)), lambda d: decode_rgb_png(d, "x")]
)
def test_a_bomb_is_refused_by_its_header(decode):
    with pytest.raises(BadSample, match="x: "):
        decode(raw_png(60000, 60000, 8, 0, b""))


def test_the_limit_is_the_callers():
    data = png(np.zeros((10, 11)))
    assert decode_index_png(data, "x", ("L",), max_pixels=110).shape == (10, 11)
    with pytest.raises(BadSample, match="11 x 10 pixels: must be 1 to 109"):
        decode_index_png(data, "x", ("L",), max_pixels=109)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_give_one_kind_of_error_or_an_array(seed: int):
    rng = np.random.default_rng(seed)
    data = bytearray(png(rng.integers(0, 150, (20, 30)), "L" if seed % 2 else "P"))
    for position in rng.integers(8, len(data), 3):
        data[position] = rng.integers(256)
    outcome = None
    try:
        outcome = decode_index_png(bytes(data), "x", ("L", "P"))
    except BadSample as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert outcome.startswith("x: ")
    else:
        assert outcome.dtype == np.uint8
        assert outcome.ndim == 2
