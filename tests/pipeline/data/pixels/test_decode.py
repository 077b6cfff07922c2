from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.pixels import decode as module
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode, decode_jpeg, decode_label, has_usual_sampling
from pipeline.data.pixels.encode import decode_image, encode_jpeg, encode_label, keep_jpeg
from tests.support.odd_jpegs import ODD_SAMPLINGS, sampled_jpeg
from tests.support.tiny_roots import encode, noise

FRACTION = ((3, 1), (2, 1), (1, 1))
"""No decoder knows samplings that are no multiples of each other."""


@pytest.mark.parametrize("name", ODD_SAMPLINGS)
def test_a_jpeg_of_any_sampling_decodes_and_is_stored_in_a_usual_one(name: str):
    jpeg = sampled_jpeg(70, 50, ODD_SAMPLINGS[name], seed=1)
    image = decode_image(jpeg)[:, :, ::-1]
    assert image.std() > 10
    assert np.array_equal(decode_jpeg(jpeg, (50, 70)), image)
    assert decode_jpeg(jpeg, (50, 70), shrink=4).shape[:2] in ((12, 17), (13, 18))
    with pytest.raises(BadSample, match=r"jpg is \(50, 70\)"):
        decode_jpeg(jpeg, (50, 71))
    assert not has_usual_sampling(jpeg)
    assert keep_jpeg(jpeg, 1080) is None
    assert has_usual_sampling(encode_jpeg(image, 95))


@pytest.mark.parametrize("factors", [((2, 2), (1, 1), (1, 1)), ((1, 1), (1, 1), (1, 1))])
def test_the_usual_samplings_are_kept(factors):
    jpeg = sampled_jpeg(70, 50, factors, seed=1)
    assert keep_jpeg(jpeg, 1080) == (jpeg, (50, 70))


def test_what_no_decoder_reads_is_a_bad_sample():
    jpeg = sampled_jpeg(70, 50, FRACTION, seed=1)
    with pytest.raises(BadSample, match="does not decode"):
        decode_image(jpeg)
    with pytest.raises(BadSample, match="does not decode"):
        decode_jpeg(jpeg, (50, 70))


def test_any_exception_of_a_decoder_is_a_bad_sample(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyError(-1)

    image = noise(20, 30, 1)
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg_header", fail)
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", fail)
    assert decode_jpeg(encode(image, ".jpg"), (20, 30)).shape == (20, 30, 3)
    monkeypatch.setattr(module.cv2, "imdecode", fail)
    for call in (lambda: decode_jpeg(encode(image, ".jpg"), (20, 30)), lambda: decode_label(b"x")):
        with pytest.raises(BadSample, match="-1 is missing"):
            call()


@pytest.mark.parametrize("plain", [True, False])
def test_ids_beyond_the_classes_are_a_bad_sample(plain: bool):
    label = np.array([[0, 193, 255], [5, 194, 230]], np.uint8)
    png = encode_label(label) if plain else encode(label, ".png")
    jpeg = encode(noise(2, 3, 1), ".jpg")
    assert np.array_equal(decode_label(png), label)
    assert np.array_equal(decode(jpeg, png, 231)[1], label)
    with pytest.raises(BadSample, match=r"ids 194, 230: .*194 classes"):
        decode(jpeg, png, 194)


@pytest.mark.parametrize(("read", "channels"), [(decode_label, 0), (decode_image, slice(3))])
def test_a_png_whose_chunk_claims_gigabytes_takes_no_memory(
    read: Callable[[bytes], object], channels: int | slice
):
    png = encode(noise(2, 3, 1)[..., channels], ".png")
    start = png.index(b"IDAT")
    read(png)
    read(png + b"what follows the end is not read")
    changed = png[: start - 4] + bytes.fromhex("7fffffff") + png[start:]
    with pytest.raises(BadSample, match="a chunk of 2147483647 bytes is cut short"):
        read(changed)
