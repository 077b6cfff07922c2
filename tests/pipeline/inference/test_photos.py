import io

import numpy as np
import pytest
from PIL import Image, features

from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.formats import decoded_formats
from pipeline.inference.photos import decode_photo


def corners() -> Image.Image:
    """40 x 24, four flat quarters: red, green / blue, white."""
    image = Image.new("RGB", (40, 24))
    for box, colour in (
        ((0, 0), "red"),
        ((20, 0), (0, 255, 0)),
        ((0, 12), "blue"),
        ((20, 12), "white"),
    ):
        image.paste(colour, (*box, box[0] + 20, box[1] + 12))
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(pixels: np.ndarray) -> str:
    """The colours of the four quarters, in reading order."""
    height, width = pixels.shape[:2]
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    return "".join(
        names[tuple(int(c > 127) for c in pixels[y, x])]
        for y in (height // 4, 3 * height // 4)
        for x in (width // 4, 3 * width // 4)
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_as_viewers_do(kind, orientation):
    """Against where the standard says that row 0 and column 0 of the file are seen."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_photo(saved(corners(), kind, exif=exif))
    expected = {
        1: "rgbw",
        2: "grwb",  # mirrored
        3: "wbgr",  # upside down
        4: "bwrg",
        5: "rbgw",  # transposed
        6: "brwg",  # row 0 is the right side: turned clockwise
        7: "wgbr",
        8: "gwrb",  # row 0 is the left side
    }
    assert pixels.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert seen(pixels) == expected[orientation]
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG"), ("1", "PNG")],
)
def test_modes_become_rgb(mode, kind):
    pixels = decode_photo(saved(corners().convert(mode), kind))
    assert pixels.shape == (24, 40, 3)
    assert pixels[20, 30].min() > 200  # the white quarter
    assert pixels[2, 2].max() > 50 or mode == "1"
    if mode in ("RGBA", "P", "CMYK"):
        assert seen(pixels) == "rgbw"


def test_16_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65_535, 40 * 24).astype(np.uint16).reshape(24, 40)
    pixels = decode_photo(saved(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(pixels[:, :, 1], ramp >> 8)


@pytest.mark.parametrize("data", [b"", b"not an image", saved(corners(), "JPEG")[:200]])
def test_what_is_none_is_told(data):
    with pytest.raises(BadSample):
        decode_photo(data)


def test_too_large_pictures_are_refused_by_their_header():
    with pytest.raises(BadSample, match="40 x 24"):
        decode_photo(saved(corners(), "PNG"), max_pixels=900)


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_more_formats_than_datasets_use(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    assert seen(decode_photo(saved(corners(), kind))) == "rgbw"


def test_avif_is_turned_too():
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert seen(decode_photo(saved(corners(), "AVIF", exif=exif))) == "brwg"


def test_heic_is_named_where_it_cannot_be_read():
    box = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    with pytest.raises(BadSample, match="HEIC" if "HEIF" not in decoded_formats() else ""):
        decode_photo(box)
