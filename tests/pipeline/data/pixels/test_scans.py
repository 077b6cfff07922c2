import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode_jpeg
from pipeline.data.pixels.encode import decode_image, keep_jpeg
from pipeline.data.pixels.scans import MAX_SCANS, check_scans, count_scans, takes_one_pass
from pipeline.inference.photos import decode_photo
from tests.support.cpu_cost import costs_at_most
from tests.support.jpeg_scans import with_scans
from tests.support.tiny_roots import noise


def saved(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 60, seed=1)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_the_scans_of_common_files():
    assert count_scans(saved(), 99) == 1
    assert count_scans(saved(progressive=True), 99) == 10  # libjpeg's own script
    assert count_scans(saved(restart_marker_blocks=1), 99) == 1
    # A thumbnail in EXIF and a second image behind the first are none of this image's.
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 80
    assert count_scans(saved(exif=exif), 99) == 1
    assert count_scans(saved() + saved() * 80, 99) == 1
    check_scans("x", saved() + saved() * 80)


@pytest.mark.parametrize(
    "decoder",
    [decode_image, decode_photo, lambda data: keep_jpeg(data, 1080)],
    ids=["decode_image", "decode_photo", "keep_jpeg"],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_too_many_scans_are_refused_by_every_decoder(decoder, progressive):
    bomb = with_scans(saved(progressive=progressive), 2000)
    assert count_scans(bomb, 10_000) == 2000
    with pytest.raises(BadSample, match="more than 50 scans"):
        decoder(bomb)
    # As many as are allowed.
    assert decoder(with_scans(saved(progressive=progressive), MAX_SCANS)) is not None


def test_a_stored_sample_is_checked_too():
    with pytest.raises(BadSample, match="more than 50 scans"):
        decode_jpeg(with_scans(saved(progressive=True), MAX_SCANS + 1), (40, 60))


def test_only_the_first_scan_of_a_sequential_file_is_decoded():
    one = saved()
    bomb = with_scans(one, 5000)
    assert takes_one_pass(bomb)
    with costs_at_most(5000 * 40 * 60 / 4e6):  # Each scan's pixels, at four of them a turn.
        np.testing.assert_array_equal(decode_jpeg(bomb, (40, 60)), decode_jpeg(one, (40, 60)))


def test_which_files_take_one_pass():
    assert takes_one_pass(saved())
    assert takes_one_pass(saved(restart_marker_blocks=1, comment=b"\xff\xda" * 99))
    assert not takes_one_pass(saved(progressive=True))
    assert not takes_one_pass(b"")
    # Of three components, in a scan of one: there are others.
    one = saved()
    header = one.index(b"\xff\xda")
    assert not takes_one_pass(one[: header + 4] + b"\x01" + one[header + 5 :])
    for end in range(header + 4):
        assert not takes_one_pass(one[:end])


def test_scans_cannot_hide_behind_markers_without_a_length():
    """A decoder passes over stray markers in a scan; a length read there would jump over scans."""
    plain = saved()
    last = plain.rfind(b"\xff\xd9")
    stray = plain[:last] + b"\xff\x02\xff\xbf\xff\xd3" + plain[last:]
    assert count_scans(with_scans(stray, 60), 99) == 60


def test_any_bytes_end():
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = b"\xff\xd8" + rng.choice([255, 218, 217, 192, 0, 7], 300).astype("u1").tobytes()
        count_scans(data, 9)
        takes_one_pass(data)


def test_fill_bytes_are_passed_in_one_go():
    """A run of them that ends in no marker must not be looked through from each of its bytes."""
    hidden = b"\xff\xda\x00\x02" + b"\xff" * 1_000_000 + b"\x00"
    bomb = b"\xff\xd8" + hidden + b"\xff\xff\xda\x00\x02" * 60 + b"\xff\xd9"
    with costs_at_most(50), pytest.raises(BadSample, match="more than 50 scans"):
        check_scans("x", bomb)
