"""What sources name: files, folders, patterns, prefixes; and the names of the results."""

import unicodedata
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.inference.search import find_photos
from pipeline.storage.open import open_storage


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "in/a.jpg", "in/deep/c.webp", "odd[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(sources) -> list[str]:
    return [photo.name for photo in find_photos(sources).photos]


def test_files_folders_and_patterns(folder):
    assert names(["a.jpg"]) == ["a"]
    assert names([str(folder)]) == ["a", "b", "in/a", "in/deep/c", "odd[1]"]
    assert names(["*.jpg"]) == ["a", "odd[1]"]
    assert names(["**/*.jpg"]) == ["a", "in/a", "odd[1]"]
    assert names(["in/*"]) == ["a"]
    assert names(["odd[1].jpg"]) == ["odd[1]"]
    assert names(["b.PNG", "in/deep"]) == ["b", "c"]
    assert names(["notes.txt"]) == ["notes"]  # named, so tried
    (photo,) = find_photos(["in/a.jpg"]).photos
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


@pytest.mark.parametrize("source", ["missing.jpg", "*.jp2", "empty"])
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
    (photo,) = find_photos([f"{s3_bucket}/out/d.jpg"]).photos
    assert photo.read() == b"out/d.jpg"
    with pytest.raises(UserError, match="no image"):
        find_photos([f"{s3_bucket}/nothing"])


def test_only_prefixes_of_object_storage_are_batches(folder, s3_bucket):
    storage = open_storage(s3_bucket)
    for name in ("z.jpg", "b[1].jpg", "2024/c.jpg"):
        storage.write(name, b"x")
    assert find_photos(["a.jpg", f"{s3_bucket}/2024"]).is_batch
    assert find_photos([f"{s3_bucket}/*.jpg"]).is_batch
    assert not find_photos([f"{s3_bucket}/z.jpg", f"{s3_bucket}/b[1].jpg", str(folder)]).is_batch


ODD = (
    "br[1].jpg",
    "what?.jpg",
    "a*b.jpg",
    "set [2024]/a.jpg",
    "set [2024]/[b]/c.jpg",
    "x/[!y].jpg",
)


def test_literal_names_come_before_patterns_in_s3(s3_bucket):
    storage = open_storage(s3_bucket)
    for name in (*ODD, "br1.jpg", "whatx.jpg", "set 2/a.jpg"):
        storage.write(f"odd/{name}", b"x")
    for name in ODD:
        (photo,) = find_photos([f"{s3_bucket}/odd/{name}"]).photos
        assert photo.uri == f"{s3_bucket}/odd/{name}"
    assert names([f"{s3_bucket}/odd/set [2024]"]) == ["[b]/c", "a"]
    assert names([f"{s3_bucket}/odd/set [2024]/"]) == ["[b]/c", "a"]
    assert names([f"{s3_bucket}/odd/set [2024]/*.jpg"]) == ["a"]
    assert names([f"{s3_bucket}/odd/set [2024]/[b]/c.jpg"]) == ["c"]
    # What there is not by its name is a pattern.
    assert names([f"{s3_bucket}/odd/br[0-9].jpg"]) == ["br1"]
    assert names([f"{s3_bucket}/odd/set [0-9]/*"]) == ["set 2/a"]


def test_a_pattern_means_the_same_in_s3_and_here(folder, s3_bucket):
    storage = open_storage(s3_bucket)
    for name in ("b[1].jpg", "b1.jpg", "^.jpg", "[].jpg", "in/b1.jpg", "in/x/y/b1.jpg", "].jpg"):
        storage.write(name, b"x")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name in ("a.jpg", "b.PNG", "in/a.jpg", "in/deep/c.webp", "odd[1].jpg"):
        storage.write(name, b"x")
    several = ("[9-0]*.jpg", "[]", "b[", "[!b]*.jpg", "[^a].jpg", "[[]*", "[]].jpg", "b[0-9].jpg")
    several += ("**", "**/*", "**/**/b1.jpg", "in/**", "**/y/*", "b**.jpg", "in[/]b1.jpg")

    def found(root: object, pattern: str) -> list[str]:
        try:
            photos = find_photos([f"{root}/{pattern}"]).photos
        except UserError as error:
            return [str(error).partition(": ")[2]]
        return sorted(photo.uri.removeprefix(f"{root}/") for photo in photos)

    for pattern in several:
        assert found(folder, pattern) == found(s3_bucket, pattern), pattern
    assert len(find_photos([f"{s3_bucket}/{'**/' * 40}b1.jpg"]).photos) == 3


@pytest.mark.parametrize("path", ["w//a.jpg", "win\\a.jpg", "in/../a.jpg", "[a-z]//*.jpg"])
def test_an_address_in_s3_that_no_path_can_be_is_told_with_its_reason(s3_bucket, path):
    open_storage(s3_bucket).write("a.jpg", b"x")
    with pytest.raises(UserError, match=r"^images=s3://.*: its name has .*: rename it.*, or name"):
        find_photos([f"{s3_bucket}/{path}"])


def test_literal_folders_come_before_patterns_here(folder):
    for name in ODD:
        path = folder / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name in ODD:
        (photo,) = find_photos([f"odd/{name}"]).photos
        assert photo.uri == str(folder / "odd" / name)
    assert names(["odd/set [2024]/*.jpg"]) == ["a"]
    assert names([str(folder / "odd/set [2024]/**/*.jpg")]) == ["[b]/c", "a"]


def test_hidden_files_and_thumbnails_are_no_images(folder):
    for name in ("._a.jpg", "in/._a.jpg", "@eaDir/a.jpg/SYNO_M.jpg", ".trash/a.jpg", ".DS_Store"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    search = find_photos([str(folder)])
    assert [photo.name for photo in search.photos] == ["a", "b", "in/a", "in/deep/c", "odd[1]"]
    assert search.others == [str(folder / "notes.txt")]
    assert names(["**/*.jpg"]) == ["a", "in/a", "odd[1]"]
    assert names(["._a.jpg"]) == ["._a"]  # named, so tried


def test_suffixes_of_phones_and_browsers(folder):
    for suffix in ("HEIC", "avif", "jfif", "jpe", "gif", "Heif"):
        (folder / "in" / f"x.{suffix}").write_bytes(b"x")
    found = names([str(folder / "in")])
    assert found[1:] == ["deep/c", "x.HEIC", "x.Heif", "x.avif", "x.gif", "x.jfif", "x.jpe"]


def test_links_to_nothing_are_found_so_that_they_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").symlink_to("/nowhere")
    (tmp_path / "c.txt").symlink_to("/nowhere")
    (tmp_path / ".d.jpg").symlink_to("/nowhere")
    photos = find_photos([str(tmp_path)]).photos
    assert [photo.name for photo in photos] == ["a", "b"]
    with pytest.raises(FileNotFoundError, match="is a link to nothing: fetch"):
        photos[1].read()


def test_what_is_not_segmented_is_named(folder):
    for name in ("b.txt", "clip.MOV", "in/more.txt", "in/x.txt", "README", "out/old.npy"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    search = find_photos([str(folder)])
    remark = search.remark(lambda uri: uri.startswith(str(folder / "out")))
    assert "4 .txt (b.txt, more.txt, x.txt, ...)" in remark
    assert "1 .mov (clip.MOV)" in remark
    assert "1 without a suffix (README)" in remark
    assert "npy" not in remark
    assert find_photos(["a.jpg"]).remark() == ""


@pytest.mark.parametrize(
    "files",
    [
        ("same.jpg", "same.png", "Same.PNG"),
        ("same.png", "Same.PNG"),
        ("same.png", "SAME.png", "sAme.Png", "same.jpeg"),
        ("a.png.jpg", "a.jpg", "a.png"),
        ("Straße.jpg", "STRASSE.jpg", "cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
def test_names_that_differ_little_get_results_of_their_own(tmp_path, files):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    found = names([str(tmp_path)])
    assert len(found) == len(files)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(files)
    # Whatever else is asked with them, and in which order.
    again = names([str(tmp_path / name) for name in reversed(files)])
    assert sorted(again) == sorted(found)


def test_a_very_long_name_is_cut(tmp_path):
    long = ["x" * 246 + ".jpg", "x" * 245 + "y.jpg", "道" * 80 + ".png"]
    for name in long:
        (tmp_path / name).write_bytes(b"x")
    found = names([str(tmp_path)])
    assert len(set(found)) == 3
    for name in found:
        (tmp_path / f"{name}.probabilities.npy").write_bytes(b"")  # A file system takes it.
