import io
import struct
import zlib

import cv2
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import (
    decode_image,
    encode_jpeg,
    encode_label,
    keep_jpeg,
    resize_image,
    resize_label,
    shrunk_size,
)
from tests.support.tiny_roots import encode, noise, pillow_bytes

RGB = noise(40, 60, seed=1)[:, :, ::-1]


def jpeg_bytes(mode: str = "RGB", **options) -> bytes:
    return pillow_bytes(Image.fromarray(RGB).convert(mode), format="JPEG", quality=95, **options)


def pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("progressive", [False, True])
def test_rgb_jpeg_keeps_its_bytes(progressive):
    data = jpeg_bytes(progressive=progressive)
    assert keep_jpeg(data, 1080) == (data, (40, 60))
    image = decode_image(data)
    assert image.shape == (40, 60, 3)
    assert abs(image[:, :, ::-1].astype(int) - pillow_rgb(data)).max() <= 2


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_exif_rotation_is_neither_applied_nor_passed_on(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, tagged = jpeg_bytes(), jpeg_bytes(exif=exif)
    kept = keep_jpeg(tagged, 1080)
    assert kept is not None
    jpeg, size = kept
    assert size == decode_image(tagged).shape[:2] == (40, 60)
    assert jpeg != tagged
    # A reader that obeys EXIF, as cv2 does by default, sees the pixels as they lie.
    seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(seen, cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR))


def test_exif_without_rotation_stays():
    exif = Image.Exif()
    exif[0x0112] = 1
    data = jpeg_bytes(exif=exif)
    assert keep_jpeg(data, 1080) == (data, (40, 60))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_modes_becomes_rgb(mode):
    data = jpeg_bytes(mode)
    image = decode_image(data)
    assert keep_jpeg(data, 1080) is None
    assert image.shape == (40, 60, 3)
    assert abs(image[:, :, ::-1].astype(int) - pillow_rgb(data)).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_png_of_any_mode_becomes_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    data = pillow_bytes(image, format="PNG")
    assert keep_jpeg(data, 1080) is None
    assert np.array_equal(decode_image(data)[:, :, ::-1], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_upper_eight(channels):
    values = (RGB.astype(np.uint16) << 8) + 77
    data = encode(values if channels == 3 else values[:, :, 0], ".png")
    decoded = decode_image(data)
    expected = RGB if channels == 3 else np.repeat(RGB[:, :, :1], 3, axis=2)
    assert np.array_equal(decoded, expected)


def bomb_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encode(np.zeros((1, 1, 3), np.uint8), ".png")[33:]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "cannot be read"),
        (b"<html>not found</html>", "cannot be read"),
        (jpeg_bytes()[:-40], "cut short"),
        (jpeg_bytes()[:300], "cannot be read"),
        (jpeg_bytes(progressive=True)[:-40], "cut short"),
        (encode(RGB, ".png")[:-500], "does not decode"),
        (pillow_bytes(Image.fromarray(RGB).convert("L"), format="PNG")[:-500], "cannot be read"),
        (bomb_png(), "pixels"),
        (pillow_bytes(Image.fromarray(np.ones((4, 4), np.float32)), format="TIFF"), "floating"),
    ],
    ids=["empty", "html", "short", "header", "progressive", "png", "grey", "bomb", "float"],
)
def test_unusable_images_are_refused_with_a_reason(data, word):
    with pytest.raises(BadSample, match=word):
        decode_image(data)


@settings(deadline=None)
@given(st.data())
def test_cut_jpeg_is_never_taken_for_whole(data):
    whole = jpeg_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadSample):
        decode_image(whole[:cut])


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_label_png_round_trip_with_filter_none(label):
    data = encode_label(label)
    by_pillow = Image.open(io.BytesIO(data))
    assert by_pillow.mode == "L"
    assert np.array_equal(np.asarray(by_pillow), label)
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(by_cv2, label)
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    rows = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8)
    assert not rows.reshape(label.shape[0], -1)[:, 0].any()


def test_encoded_jpeg_shows_the_image():
    data = encode_jpeg(np.ascontiguousarray(RGB[:, :, ::-1]), 95)
    assert abs(pillow_rgb(data) - RGB).mean() < 3


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(16, 2000))
def test_shrunk_size(height, width, short_side):
    new_height, new_width = shrunk_size(height, width, short_side)
    if min(height, width) <= short_side:
        assert (new_height, new_width) == (height, width)
    else:
        assert min(new_height, new_width) == short_side
        assert abs(new_width / width - new_height / height) <= 0.5 / min(height, width) + 1e-9


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=20, max_side=60)))
def test_shrinking_a_label_invents_no_id(label):
    small = resize_label(label, shrunk_size(*label.shape, 16))
    assert set(np.unique(small)) <= set(np.unique(label))


def test_only_what_is_well_above_the_long_side_is_shrunk_to_it():
    # Cityscapes, IDD, BDD100K, the largest of Mapillary, ADE20K.
    sizes = (1024, 2048), (1080, 1920), (720, 1280), (3024, 4032), (512, 683)
    found = [shrunk_size(*size, 1080, 1040) for size in sizes]
    assert found == [(520, 1040), (585, 1040), (720, 1280), (780, 1040), (512, 683)]
    assert shrunk_size(1200, 1500, 1080, 1040) == (1080, 1350)  # Above the short side alone.
    assert shrunk_size(4000, 60, 1080, 1040) == (1040, 16)
    data = encode_jpeg(np.zeros((100, 300, 3), np.uint8), 95)
    assert keep_jpeg(data, 1080, 200) is None
    assert keep_jpeg(data, 1080, 201) == (data, (100, 300))


def test_shrunk_label_lies_over_its_image():
    """Edges of image and label fall together, without the half pixel that cv2's nearest is off."""
    label = np.zeros((90, 90), np.uint8)
    label[:, 43:] = 1
    label[31:] = 1
    image = np.repeat(label[:, :, None] * 255, 3, axis=2)
    small_image = resize_image(image, (30, 30))[:, :, 0]
    assert np.array_equal(resize_label(label, (30, 30)), small_image > 127)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_kept_jpeg_is_refused_exactly_when_its_decoding_fails(progressive):
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), (160, 120))
    whole = pillow_bytes(Image.fromarray(pixels), format="JPEG", progressive=progressive)
    assert keep_jpeg(whole, 120) == (whole, (120, 160))
    assert keep_jpeg(whole, 119) is None
    assert keep_jpeg(pillow_bytes(Image.fromarray(pixels), format="PNG"), 200) is None
    assert keep_jpeg(pillow_bytes(Image.fromarray(pixels[..., 0]), format="JPEG"), 200) is None
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(2, len(damaged), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        results = []
        for decode in (decode_image, lambda data: keep_jpeg(data, 1080) or decode_image(data)):
            try:
                decode(bytes(damaged))
                results.append("")
            except BadSample as error:
                results.append(str(error))
        assert results[0] == results[1]
        outcomes.add(results[0])
    assert len(outcomes) > 2  # Some are read, others not, for several reasons.
