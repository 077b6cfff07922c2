import io
import os
import pickle
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage import node_copies as spool
from pipeline.storage.archives import packed as storage_packed
from pipeline.storage.archives.archive import Archive
from pipeline.storage.archives.blob import Blob
from pipeline.storage.archives.packed import PackedStorage, Packing, local_copy, open_packed
from pipeline.storage.base import DamagedFile, Entry, Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.official_archives import upload_tree, write_archive, write_zip

KINDS = (".zip", ".tar", ".tar.gz")
FILES = {
    "top/a/1.bin": os.urandom(3000),
    "top/a-b/2.bin": b"x" * 100_000,
    "top/empty": b"",
    "top/a/deep/ä é.txt": "naïve".encode(),
    "top/a0": b"0",
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def archive_at(path: Path) -> Archive:
    return Archive(Blob.of(LocalStorage(path.parent), path.name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_reads_like_a_folder(request: pytest.FixtureRequest, tmp_path: Path, kind: str, place: str):
    write_archive(tmp_path / f"in/x{kind}", FILES)
    for path, data in FILES.items():
        (tmp_path / "plain" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / path).write_bytes(data)
    root = str(tmp_path / "in")
    if place == "s3":
        root = request.getfixturevalue("s3_bucket")
        upload_tree(tmp_path / "in", root)
    packed = open_packed(f"{root}/x{kind}", ())
    plain = open_storage(str(tmp_path / "plain"))
    assert isinstance(packed, PackedStorage)
    for storage in (packed, pickle.loads(pickle.dumps(packed))):
        for prefix in ("", "top", "top/a", "top/a/deep", "top/a0", "to", "none"):
            assert list(storage.list(prefix)) == list(plain.list(prefix))
            assert storage.folders(prefix) == plain.folders(prefix)
            assert list(storage.files(prefix)) == list(plain.files(prefix))
        for path, data in FILES.items():
            assert storage.read(path) == data
            assert storage.size(path) == len(data)
            if len(data) > 50:
                assert storage.read_range(path, 7, 40) == data[7:47]
            assert local_copy(storage, path).read_bytes() == data
        assert not storage.exists("top/a")
        for missing in ("top", "top/none", "x"):
            with pytest.raises(FileNotFoundError):
                storage.read(missing)
    with pytest.raises(UserError, match="only read"):
        packed.write("top/new", b"x")


def test_a_folder_with_archives_in_it(tmp_path: Path):
    write_archive(tmp_path / "one.zip", {"images/1.jpg": b"1", "images/x/2.jpg": b"2"})
    write_archive(tmp_path / "two.tar", {"labels/1.png": b"l1"})
    write_archive(tmp_path / "other.zip", {"labels/9.png": b"9"})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "3.jpg").write_bytes(b"3")
    packings = (Packing("one*.zip", "images/1.jpg"), Packing("two.*", "labels"))
    storage = open_packed(str(tmp_path), packings)
    assert storage.folders() == ("images", "labels", "tmp")
    assert [entry.path for entry in storage.list("images")] == [
        "images/1.jpg",
        "images/3.jpg",
        "images/x/2.jpg",
    ]
    assert [e.path for e in storage.list("labels")] == ["labels/1.png"]
    assert storage.read("images/3.jpg") == b"3"
    assert storage.read("labels/1.png") == b"l1"
    assert storage.read("two.tar").startswith(b"./labels")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.png").write_bytes(b"unpacked")
    assert open_packed(str(tmp_path), packings).read("labels/1.png") == b"unpacked"


def test_pictures_without_a_folder_get_one_of_the_archives_name(tmp_path: Path):
    for name in ("train", "test"):
        write_archive(tmp_path / f"{name}.tgz", {"img-1.jpg": name.encode()})
    packings = (Packing("train.tgz", "train"), Packing("test.tgz", "test"))
    storage = open_packed(str(tmp_path), packings)
    assert storage.read("train/img-1.jpg") == b"train"
    assert storage.read("test/img-1.jpg") == b"test"
    assert storage.folders() == ("test", "tmp", "train")


def zip_with(path: Path, add: Callable[[zipfile.ZipFile], None]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good/1.png", b"good")
        add(archive)


def linked(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.png", "leaves the archive"),
        ("good/../../evil.png", "leaves the archive"),
        ("/etc/evil.png", "absolute"),
        ("C:/evil.png", "absolute"),
        ("good\\..\\evil.png", "backslash"),
        ("good/\nevil.png", "no text"),
    ],
)
@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_names_that_would_leave_are_refused(tmp_path: Path, name: str, reason: str, kind: str):
    write_archive(tmp_path / f"x{kind}", {"good/1.png": b"good", "good/2.png": b"2"})
    path = tmp_path / f"y{kind}"
    if kind == ".zip":
        zip_with(path, lambda archive: archive.writestr(name, b"evil"))
    else:
        with tarfile.open(path, "w") as archive:
            for member_name in ("good/1.png", name):
                member = tarfile.TarInfo(member_name)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"good"))
    archive = archive_at(path)
    assert archive.names == ["good/1.png"]
    ((refused, why),) = archive.refused
    assert "evil.png" in refused
    assert reason in why
    storage = open_packed(str(path), ())
    assert isinstance(storage, PackedStorage)
    assert [entry.path for entry in storage.list()] == ["good/1.png"]
    assert len(storage.refused) == 1
    with pytest.raises((UserError, FileNotFoundError)):
        storage.read(name)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("images/passwd.png")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
        plain = tarfile.TarInfo("images/1.png")
        plain.size = 1
        archive.addfile(plain, io.BytesIO(b"1"))
    archive = archive_at(tmp_path / "x.tar")
    assert archive.names == ["images/1.png"]
    assert [name for name, _ in archive.refused] == ["images/passwd.png"]


def test_odd_members_of_a_zip_are_refused(tmp_path: Path):
    def add(archive: zipfile.ZipFile) -> None:
        archive.writestr(linked("good/link.png"), "/etc/passwd")
        archive.writestr("good/bz2.png", b"x" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("__MACOSX/good/._1.png", b"")
        archive.writestr("good/", b"")

    zip_with(tmp_path / "x.zip", add)
    archive = archive_at(tmp_path / "x.zip")
    assert archive.names == ["good/1.png"]
    assert [name for name, _ in archive.refused] == ["good/link.png", "good/bz2.png"]


@pytest.mark.parametrize("stored", [b"", b"\0ood/1.png"])
@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_a_member_without_a_name_is_refused(tmp_path: Path, stored: bytes, kind: str):
    path = tmp_path / f"x{kind}"
    write_archive(path, {"good/1.png": b"one", "good/2.png": b"two"})
    data = bytearray(path.read_bytes())
    if kind == ".zip":
        start = data.index(b"PK\1\2")
        # What of the old name is left over counts as a comment.
        struct.pack_into("<HHH", data, start + 28, len(stored), 0, 10 - len(stored))
        data[start + 46 : start + 46 + len(stored)] = stored
    else:
        data[:100] = stored.ljust(100, b"\0")
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    archive = archive_at(path)
    assert archive.names == ["good/2.png"]
    assert archive.refused == (("", "has no name"),)


def patched(data: bytes, old: int, new: int) -> bytes:
    """The zip with a 32-bit number replaced in its central directory."""
    start = data.rindex(b"PK\1\2")
    place = data.index(struct.pack("<I", old), start)
    return data[:place] + struct.pack("<I", new) + data[place + 4 :]


@pytest.mark.parametrize("claimed", [99_999, 100_001, 5])
def test_a_member_with_a_false_size_is_damaged(tmp_path: Path, claimed: int):
    buffer = io.BytesIO()
    write_zip(buffer, {"1.bin": bytes(100_000)})
    (tmp_path / "x.zip").write_bytes(patched(buffer.getvalue(), 100_000, claimed))
    with pytest.raises(DamagedFile, match=r"x\.zip: 1\.bin"):
        archive_at(tmp_path / "x.zip").read("1.bin")


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(70 << 20))
        archive.writestr("text.json", os.urandom(1 << 20) + bytes(70 << 20))
    archive = archive_at(tmp_path / "x.zip")
    assert archive.names == ["text.json"]
    assert "more than 200 times" in archive.refused[0][1]


def test_members_that_share_bytes_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "good.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 20))
        infos = [archive.infolist()[0]]
        for number in range(50):
            info = zipfile.ZipInfo(f"{number:05d}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(info, name, getattr(infos[0], name))
            archive.filelist.append(info)
    with pytest.raises(UserError, match=r"good\.zip: .*members lie apart: .* overlap"):
        archive_at(tmp_path / "good.zip")


def test_a_bomb_that_declares_little_is_cut_off(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(80 << 20))
    data = patched((tmp_path / "x.zip").read_bytes(), 80 << 20, 1000)
    (tmp_path / "x.zip").write_bytes(data)
    produced: list[int] = []
    chunks = archive_at(tmp_path / "x.zip")._chunks("bomb.png", 1 << 20)
    with pytest.raises(DamagedFile):
        produced.extend(map(len, chunks))
    assert 0 < sum(produced) <= 1001


def test_a_bomb_in_a_gzip_is_refused(tmp_path: Path):
    write_archive(tmp_path / "x.tar.gz", {"bomb.png": bytes(70 << 20)})
    with pytest.raises(UserError, match=r"x\.tar\.gz.*more than 200 times"):
        archive_at(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "first half zeros"])
def test_a_damaged_archive_is_one_clear_error(tmp_path: Path, kind: str, damage: str):
    path = tmp_path / f"x{kind}"
    write_archive(path, {f"a/{n}.bin": os.urandom(5000) for n in range(20)})
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(
        {
            "cut short": data[:half],
            "empty": b"",
            "text": b"<html>please log in</html>" * 100,
            "first half zeros": bytes(half) + data[half:],
        }[damage]
    )
    if (kind, damage) == (".zip", "first half zeros"):  # the directory lies at its end
        archive = archive_at(path)
        with pytest.raises(DamagedFile, match="no member begins"):
            archive.read("a/0.bin")
        assert len(archive.read("a/19.bin")) == 5000
    elif (kind, damage) == (".tar", "first half zeros"):  # zeros are the end of a tar
        assert archive_at(path).names == []
    else:
        with pytest.raises(UserError, match=rf"x{kind}.*download it again"):
            archive_at(path)


def test_a_damaged_header_does_not_end_a_tar_silently(tmp_path: Path):
    path = tmp_path / "x.tar"
    write_archive(path, {f"{n}.bin": os.urandom(700) for n in range(5)})
    data = bytearray(path.read_bytes())
    data[3 * 1536 : 3 * 1536 + 512] = os.urandom(512)
    path.write_bytes(data)
    with pytest.raises(UserError, match="no header at byte 4608"):
        archive_at(path)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_header_of_a_tar_that_claims_to_be_long_takes_no_memory(tmp_path: Path, kind: bytes):
    write_archive(tmp_path / "x.tar", {"good/1.png": b"one", "good/2.png": b"two"})
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[124:136] = b"77777777777\0"  # 8 GiB
    data[148:156], data[156:157] = b" " * 8, kind
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match="a header of 8589934592 bytes"):
        archive_at(tmp_path / "x.tar")


def test_a_damaged_member_of_a_zip_is_told_from_its_checksum(tmp_path: Path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"0123456789" * 100)
        archive.writestr("b", b"fine")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    archive = archive_at(path)
    with pytest.raises(DamagedFile, match=r"x\.zip: a: its bytes"):
        archive.read("a")
    assert archive.read("b") == b"fine"


class Counting(LocalStorage):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: list[int] = []

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        self.requests.append(length)
        return super()._read_range(path, offset, length)


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_a_member_costs_one_request(tmp_path: Path, kind: str):
    files = {f"images/{n}.bin": os.urandom(200_000) for n in range(100)}
    write_archive(tmp_path / f"x{kind}", files)
    storage = Counting(tmp_path)
    archive = Archive(Blob.of(storage, f"x{kind}"))
    # A tar has no directory, so each header is a request; of its 20 MB a third is not read.
    assert len(storage.requests) < (10 if kind == ".zip" else 205)
    assert sum(storage.requests) < (3 << 20 if kind == ".zip" else 14 << 20)
    storage.requests.clear()
    for name in ("images/7.bin", "images/99.bin"):
        assert archive.read(name) == files[name]
    assert len(storage.requests) == 2
    assert sum(storage.requests) < 402_000
    storage.requests.clear()
    again = Archive(Blob.of(storage, f"x{kind}"))
    assert again.names == archive.names
    assert kind == ".zip" or storage.requests == []  # the table is kept on this node


def test_a_replaced_archive_is_read_anew(tmp_path: Path):
    path = tmp_path / "x.tar"
    write_archive(path, {"a": b"first"})
    assert open_packed(str(path), ()).read("a") == b"first"
    write_archive(path, {"b": b"other"})
    os.utime(path, ns=(1, 1))
    assert open_packed(str(path), ()).read("b") == b"other"


def test_a_compressed_archive_is_unpacked_once_on_a_node(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    write_archive(tmp_path / "x.tar.gz", {"a/1": b"1" * 1000})
    assert archive_at(tmp_path / "x.tar.gz").read("a/1") == b"1" * 1000
    (folder,) = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = {p.name: p.stat().st_size for p in folder.iterdir() if p.suffix != ".lock"}
    assert len(kept) == 2  # the plain tar, and its table

    def never(*_: object) -> None:
        raise AssertionError("written a second time")

    monkeypatch.setattr(spool, "_write", never)
    assert archive_at(tmp_path / "x.tar.gz").read("a/1") == b"1" * 1000


def test_a_disk_that_is_too_small_is_told_before_and_while_writing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    write_archive(tmp_path / "x.tar.gz", {"a": os.urandom(3 << 20)})
    usage = shutil.disk_usage(tmp_path)._replace(free=(1 << 30) + (1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"x\.tar\.gz needs at least 1\.0 GiB: set TMPDIR"):
        archive_at(tmp_path / "x.tar.gz")
    (folder,) = temporary.iterdir()

    def smaller_disk(_: object):
        """Room for 100 MiB more than must stay free, of which what is written is gone."""
        written = sum(path.stat().st_size for path in folder.iterdir())
        return usage._replace(free=(1 << 30) + (100 << 20) - written)

    monkeypatch.setattr(shutil, "disk_usage", smaller_disk)
    chunks = iter([bytes(1 << 20)] * 400)
    with pytest.raises(UserError, match=r"a copy of x needs at least .* set TMPDIR"):
        spool.spooled("key", "x", chunks)
    assert 200 < len(list(chunks)) < 300  # It stopped long before the disk was full.
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []


def test_a_spool_folder_of_somebody_else_is_not_used(tmp_path: Path, temporary: Path):
    (temporary / f"lseg-spool-{os.getuid()}").mkdir(mode=0o777)
    (temporary / f"lseg-spool-{os.getuid()}").chmod(0o777)
    write_archive(tmp_path / "x.tar", {"a": b"1"})
    with pytest.raises(UserError, match="this user alone may enter"):
        archive_at(tmp_path / "x.tar")


def test_copies_that_nobody_used_for_long_are_deleted(tmp_path: Path, temporary: Path):
    spool.spooled("old", "old", iter([b"old"]))
    (folder,) = temporary.iterdir()
    (old,) = (path for path in folder.iterdir() if path.suffix != ".lock")
    os.utime(old, (0, 0))
    new = spool.spooled("new", "new", iter([b"new"]))
    assert not old.exists()
    assert new.read_bytes() == b"new"


def test_a_file_that_another_process_takes_away_meanwhile(temporary: Path):
    spool.spooled("old", "old", iter([b"old"]))
    (folder,) = temporary.iterdir()
    # A name that is listed and has no file behind it any more.
    (folder / "theirs.partial").symlink_to(folder / "gone")
    assert spool.spooled("new", "new", iter([b"new"])).read_bytes() == b"new"


def test_a_copy_that_fails_leaves_nothing(temporary: Path):
    def chunks():
        yield b"some"
        raise DamagedFile("broken")

    with pytest.raises(DamagedFile):
        spool.spooled("key", "it", chunks())
    assert spool.spooled("key", "it", iter([b"whole"])).read_bytes() == b"whole"


def test_entries_of_files(tmp_path: Path, s3_bucket: str):
    for storage in (open_storage(str(tmp_path / "x")), open_storage(s3_bucket)):
        assert list(storage.files()) == []
        for path in ("b", "a", "folder/c", "folder/deep/d"):
            storage.write(path, path.encode())
        assert list(storage.files()) == [Entry("a", 1), Entry("b", 1)]
        assert list(storage.files("folder")) == [Entry("folder/c", 8)]
        before = storage.version("a")
        assert storage.version("a") == before
        storage.write("a", b"a longer one")
        assert storage.version("a") != before
        with pytest.raises(FileNotFoundError):
            storage.version("none")


def test_archives_are_read_once_in_a_process(tmp_path: Path):
    write_archive(tmp_path / "x.zip", {"a": b"1"})
    open_packed(str(tmp_path / "x.zip"), ())
    known = set(storage_packed._ARCHIVES)
    storage: Storage = open_packed(str(tmp_path / "x.zip"), ())
    assert set(storage_packed._ARCHIVES) == known
    assert storage.read("a") == b"1"
