import io

import pytest
from PIL import Image, features

from pipeline.data.pixels import formats
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import decode_image
from pipeline.data.pixels.formats import SUFFIXES, decoded_formats, unread_reason
from pipeline.data.pixels.official import decode_index_png
from tests.support.cpu_cost import costs_at_most

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def container(major: bytes, *others: bytes) -> bytes:
    brands = b"".join(others)
    size = (16 + len(brands)).to_bytes(4, "big")
    return size + b"ftyp" + major + bytes(4) + brands + bytes(100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (container(b"heic", b"mif1"), "HEIC"),
        (container(b"mif1", b"heix"), "HEIC"),
        (container(b"avif", b"mif1", b"miaf"), "AVIF"),
        (container(b"mif1", b"avif"), "AVIF"),
        (container(b"isom", b"mp41"), ""),  # A film is no picture.
        (b"\xff\xd8\xff\xe0" + bytes(50), ""),
        (b"", ""),
    ],
)
def test_what_cannot_be_decoded_here_is_named(monkeypatch, data, kind):
    monkeypatch.setattr(formats, "decoded_formats", lambda: ("JPEG",))
    assert unread_reason(data).partition(",")[0] == kind
    # Where they can be, no reason is given.
    monkeypatch.setattr(formats, "decoded_formats", lambda: ("JPEG", "AVIF", "HEIF"))
    assert unread_reason(data) == ""


def test_what_lies_in_the_place_of_a_file_is_named():
    for read in (decode_image, lambda data: decode_index_png(data, "a.png", ("L",))):
        with pytest.raises(BadSample, match="Git LFS in its place: fetch it with git lfs pull"):
            read(LFS)
        with pytest.raises(BadSample, match="cannot be read: it is empty"):
            read(b"")


def test_every_format_that_is_decoded_has_a_suffix():
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES & known.keys()} - {"HEIF"} <= {
        *decoded_formats(),
        "MPO",
    }


def test_a_ppm_of_one_long_comment_is_refused_at_once():
    plain = b"P6 # made by hand\n#\n4 3\n255\n" + bytes(36)
    assert decode_image(plain).shape == (3, 4, 3)
    assert unread_reason(b"P5\n4 3\n255\n" + bytes(12)) == ""
    bomb = b"P6 #" + b"x" * 8_000_000 + b"\n4 3\n255\n" + bytes(36)
    refused = pytest.raises(BadSample, match="PPM whose header is longer than 4096 bytes")
    with costs_at_most(10), refused:
        decode_image(bomb)


@pytest.mark.parametrize("space", [b" ", b"\n", b"#\n", b" #\n", b" # x\r\n"])
def test_spaces_of_a_ppm_are_split_in_one_way(space):
    """In all ways, as many as there are subsets of them, 50 bytes would take days."""
    data = b"P3" + space * 40
    with costs_at_most(20):
        assert "PPM whose header" in unread_reason(data + b"x")
        assert "PPM whose header" in unread_reason(data + b"4" + space * 40 + b"x")
        assert unread_reason(data + b"4" + space * 40 + b"3 255\n") == ""


def test_programs_are_no_images():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")
    with pytest.raises(BadSample):
        decode_image(buffer.getvalue())
    assert ("AVIF" in decoded_formats()) == features.check("avif")
