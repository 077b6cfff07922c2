import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from pipeline.inference.photos import decode_photo, find_photos, is_batch
from pipeline.storage.open import open_storage


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


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "in/a.jpg", "in/deep/c.webp", "odd[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(sources) -> list[str]:
    return [photo.name for photo in find_photos(sources)]


def test_files_folders_and_patterns(folder):
    assert names(["a.jpg"]) == ["a"]
    assert names([str(folder)]) == ["a", "b", "in/a", "in/deep/c", "odd[1]"]
    assert names(["*.jpg"]) == ["a", "odd[1]"]
    assert names(["**/*.jpg"]) == ["a", "in/a", "odd[1]"]
    assert names(["in/*"]) == ["a"]
    assert names(["odd[1].jpg"]) == ["odd[1]"]
    assert names(["b.PNG", "in/deep"]) == ["b", "c"]
    assert names(["notes.txt"]) == ["notes"]  # named, so tried
    (photo,) = find_photos(["in/a.jpg"])
    assert photo.uri == str(folder / "in/a.jpg")
    assert photo.read() == b"x"


def test_a_picture_is_taken_once(folder):
    assert names(["a.jpg", "./a.jpg", "*.jpg"]) == ["a", "odd[1]"]


def test_equal_names_are_told_apart_by_their_suffix(folder):
    (folder / "a.png").write_bytes(b"y")
    (folder / "A.webp").write_bytes(b"z")
    assert names(["a.jpg", "a.png", "A.webp", "b.PNG"]) == ["a.jpg", "a.png", "A.webp", "b"]
    with pytest.raises(UserError, match=r"both be written as a\.jpg"):
        find_photos(["a.jpg", "in/a.jpg"])


@pytest.mark.parametrize("source", ["missing.jpg", "*.gif", "empty"])
def test_a_source_without_pictures_is_an_error(folder, source):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        find_photos(["a.jpg", source])


def test_s3_objects_prefixes_and_patterns(s3_bucket):
    storage = open_storage(s3_bucket)
    for name in ("in/a.jpg", "in/b.png", "in/deep/c.jpg", "in/x.txt", "out/d.jpg"):
        storage.write(name, name.encode())
    assert names([f"{s3_bucket}/in/a.jpg"]) == ["a"]
    assert names([f"{s3_bucket}/in"]) == ["a", "b", "deep/c"]
    assert names([f"{s3_bucket}/in/"]) == ["a", "b", "deep/c"]
    assert names([s3_bucket]) == ["in/a", "in/b", "in/deep/c", "out/d"]
    assert names([f"{s3_bucket}/in/*.jpg"]) == ["a"]
    assert names([f"{s3_bucket}/**/*.jpg"]) == ["in/a", "in/deep/c", "out/d"]
    assert names([f"{s3_bucket}/*/[!a]*.jpg"]) == ["out/d"]
    (photo,) = find_photos([f"{s3_bucket}/out/d.jpg"])
    assert photo.read() == b"out/d.jpg"
    with pytest.raises(UserError, match="no image"):
        find_photos([f"{s3_bucket}/nothing"])


def test_only_prefixes_of_object_storage_are_batches():
    assert is_batch(["a.jpg", "s3://photos/2024"])
    assert is_batch(["s3://photos/*.jpg"])
    assert not is_batch(["s3://photos/a.jpg", "folder"])
