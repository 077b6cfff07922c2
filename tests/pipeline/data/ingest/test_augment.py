import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.ingest.augment import AugmentConfig, whole_view
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from tests.support.crops import random_crop
from tests.support.tiny_roots import encode, noise

CONFIG = AugmentConfig(crop_px=48, base_px=64)
SIDES = st.integers(1, 150)
SEEDS = st.integers(0, 2**64 - 1)


def plain(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture without black, and a label of the ids 3 to 6."""
    rng = np.random.default_rng(height * 1000 + width)
    image = rng.integers(40, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(3, 7, (height, width), dtype=np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose red is x and whose green is y, both at most 255."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 99)], -1).astype(np.uint8)


def content(label: np.ndarray) -> tuple[int, int]:
    """Height and width of the part of a crop that is not padding."""
    inside = label != IGNORE
    height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert inside[:height, :width].all()
    assert not inside[height:].any()
    assert not inside[:, width:].any()
    return height, width


@settings(deadline=None, max_examples=150)
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_crop_is_a_padded_square_of_ids_of_the_source(height, width, seed):
    image, label = plain(height, width)
    crop, ids = random_crop(image, label, seed, CONFIG)
    assert (crop.shape, crop.dtype) == ((48, 48, 3), np.uint8)
    assert (ids.shape, ids.dtype) == ((48, 48), np.uint8)
    inner_height, inner_width = content(ids)
    assert inner_height >= 1
    assert inner_width >= 1
    assert set(np.unique(ids)) <= {*np.unique(label), IGNORE}
    inside = np.zeros((48, 48), bool)
    inside[:inner_height, :inner_width] = True
    assert (crop[inside] >= 40).all()
    assert (crop[~inside] == 0).all()


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, side=st.integers(16, 80))
def test_a_whole_view_keeps_the_shape_of_the_picture(height, width, side):
    image, label = plain(height, width)
    view, ids = whole_view(image, label, side)
    assert (view.shape, view.dtype) == ((side, side, 3), np.uint8)
    assert (ids.shape, ids.dtype) == ((side, side), np.uint8)
    scale = side / max(height, width)
    expected = (max(1, round(height * scale)), max(1, round(width * scale)))
    assert content(ids) == expected
    assert (view[: expected[0], : expected[1]] >= 40).all()
    assert (view[expected[0] :] == 0).all()
    assert (view[:, expected[1] :] == 0).all()


@settings(deadline=None, max_examples=100)
@given(
    height=st.integers(20, 250),
    width=st.integers(20, 250),
    seed=SEEDS,
    axis=st.sampled_from([0, 1]),
    scale=st.sampled_from([(0.25, 0.5), (0.5, 2.0), (2.0, 4.0)]),
)
def test_image_and_label_stay_aligned(height, width, seed, axis, scale):
    image = coordinates(height, width)
    label = image[:, :, axis]
    crop, ids = random_crop(image, label, seed, AugmentConfig(crop_px=64, base_px=64, scale=scale))
    inner_height, inner_width = content(ids)
    difference = crop[:inner_height, :inner_width, axis].astype(float)
    difference -= ids[:inner_height, :inner_width]
    step = max(height, width) / (64 * scale[0])  # Source pixels in one pixel of the crop, at most.
    assert np.abs(difference).max() <= step / 2 + 1.5
    assert np.abs(difference).mean() <= step / 4 + 1
    # Neither is shifted against the other by a part of a pixel.
    assert abs(difference.mean()) <= step / 10 + 0.75


def test_the_seed_decides_and_the_source_is_left_alone():
    image, label = noise(90, 130, 1), plain(90, 130)[1]
    kept = image.copy(), label.copy()
    crops = [random_crop(image, label, seed, CONFIG) for seed in range(20)]
    again = [random_crop(image, label, seed, CONFIG) for seed in range(20)]
    for one, other in zip(crops, again, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    assert len({crop.tobytes() for crop, _ in crops}) == 20
    assert np.array_equal(image, kept[0])
    assert np.array_equal(label, kept[1])


def test_zoom_and_position_are_uniform_over_their_ranges():
    image = coordinates(256, 256)
    label = np.zeros((256, 256), np.uint8)
    config = AugmentConfig(crop_px=32, base_px=64, scale=(0.5, 2.0), flip_probability=0.0)
    long_sides, lefts, tops = [], [], []
    for seed in range(600):
        crop, ids = random_crop(image, label, seed, config)
        assert content(ids) == (32, 32)  # At scale 0.5 the picture just fills the crop.
        red, green = crop[:, :, 0].astype(float), crop[:, :, 1].astype(float)
        per_pixel = (red[:, -1] - red[:, 0]).mean() / 31
        assert (green[-1] - green[0]).mean() / 31 == pytest.approx(per_pixel, abs=0.05)
        long_sides.append(256 / per_pixel)
        room = 256 - 32 * per_pixel
        if room > 64:
            lefts.append((red[:, 0].mean() - per_pixel / 2 + 0.5) / room)
            tops.append((green[0].mean() - per_pixel / 2 + 0.5) / room)
    assert min(long_sides) == pytest.approx(32, abs=1.5)
    assert max(long_sides) == pytest.approx(128, abs=3)
    assert np.mean(long_sides) == pytest.approx(80, abs=4)  # Standard error 1.1.
    assert len(lefts) > 300
    for positions in (lefts, tops):
        assert min(positions) > -0.02
        assert max(positions) < 1.02
        assert np.mean(positions) == pytest.approx(0.5, abs=0.06)  # Standard error 0.015.
        assert np.std(positions) == pytest.approx(12**-0.5, abs=0.04)
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.2


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (1.0, 200, 200),
                                                          (0.5, 65, 135)])  # fmt: skip
def test_flips_come_with_their_probability(probability, low, high):
    image, label = coordinates(100, 200), np.zeros((100, 200), np.uint8)
    config = AugmentConfig(crop_px=32, base_px=64, flip_probability=probability)
    flipped = 0
    for seed in range(200):
        crop, ids = random_crop(image, label, seed, config)
        inner_height, inner_width = content(ids)
        red = crop[:inner_height, :inner_width, 0].astype(int)
        flipped += bool(red[0, 0] > red[0, -1])
        assert crop[0, 0, 1] <= crop[inner_height - 1, 0, 1]  # Never upside down.
    assert low <= flipped <= high


def test_padding_is_at_the_right_and_bottom_alone():
    image, label = plain(60, 120)
    config = AugmentConfig(crop_px=64, base_px=64, scale=(0.5, 0.5))
    crop, ids = random_crop(image, label, 3, config)
    assert content(ids) == (16, 32)
    assert (crop[:16, :32] >= 40).all()
    assert crop[16:].max() == 0
    assert crop[:, 32:].max() == 0


def test_decode_gives_rgb_and_the_exact_label():
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, :, 0] = 200  # Red in the order of OpenCV is the last channel.
    jpeg = encode(image[:, :, ::-1], ".jpg")
    label = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    decoded, ids = decode(jpeg, encode(label, ".png"))
    assert decoded.shape == (24, 32, 3)
    assert np.abs(decoded.reshape(-1, 3).mean(0) - [200, 0, 0]).max() < 4
    assert np.array_equal(ids, label)


_JPEG = encode(noise(60, 80, 0), ".jpg")
_PNG = encode(np.random.default_rng(1).integers(0, 9, (60, 80), dtype=np.uint8), ".png")


@pytest.mark.parametrize(
    ("jpeg", "png", "words"),
    [
        (b"", _PNG, "jpg is empty"),
        (_JPEG, b"", "png is empty"),
        (_JPEG[: len(_JPEG) // 2], _PNG, "jpg does not decode"),
        (_JPEG[:-2], _PNG, "jpg does not decode"),
        (_JPEG, _PNG[: len(_PNG) // 2], "png does not decode"),
        (_JPEG, _PNG[: len(_PNG) // 2] + b"\0" + _PNG[len(_PNG) // 2 + 1 :], "png does not decode"),
        (b"no picture at all", _PNG, "jpg does not decode"),
        (_JPEG, encode(np.zeros((59, 80), np.uint8), ".png"), r"jpg is \(60, 80\).*\(59, 80\)"),
        (_JPEG, encode(np.zeros((60, 80), np.uint16), ".png"), "uint16.*not 8-bit grey"),
        (_JPEG, encode(np.zeros((60, 80, 3), np.uint8), ".png"), "not 8-bit grey"),
    ],
)
def test_what_does_not_decode_is_a_bad_sample(jpeg, png, words):
    with pytest.raises(BadSample, match=words):
        decode(jpeg, png)


def test_a_picture_of_absurd_size_is_refused_from_its_header():
    header = bytearray(encode(np.zeros((1, 1), np.uint8), ".png"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(BadSample, match="png does not decode"):
        decode(_JPEG, bytes(header))
    assert cv2.imdecode(np.frombuffer(_PNG, np.uint8), cv2.IMREAD_UNCHANGED).shape == (60, 80)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop_px": 8}, r"augment\.crop_px=8"),
        ({"base_px": 10**9}, r"augment\.base_px=1000000000: must be 16 to 8192"),
        ({"base_px": 0}, r"augment\.base_px=0"),
        ({"scale": (0.0, 2.0)}, r"augment\.scale=\[0\.0, 2\.0\]"),
        ({"scale": (2.0, 0.5)}, r"augment\.scale=\[2\.0, 0\.5\]"),
        ({"flip_probability": 1.5}, r"augment\.flip_probability=1\.5"),
    ],
)
def test_wrong_settings_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        AugmentConfig(**values)
