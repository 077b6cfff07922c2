import errno
import os
import pickle
import socket
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage import outages
from pipeline.storage import s3 as storage_s3
from pipeline.storage.base import Entry, ObjectError, Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.other_user import open_folder, refused


@pytest.fixture(params=["local", "s3", "s3 with prefix"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    bucket = request.getfixturevalue("s3_bucket")
    return open_storage(bucket if request.param == "s3" else f"{bucket}/some/prefix/")


def test_reads_what_was_written(storage: Storage):
    storage.write("a/b.bin", b"first")
    storage.write("a/b.bin", b"second")
    assert storage.read("a/b.bin") == b"second"
    assert storage.size("a/b.bin") == 6
    assert storage.exists("a/b.bin")


def test_empty_object(storage: Storage):
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.read_range("empty", 0, 0) == b""
    assert list(storage.list()) == [Entry("empty", 0)]


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 1), (3, 4), (9, 1), (0, 10), (10, 0)])
def test_reads_a_range(storage: Storage, offset: int, length: int):
    storage.write("digits", b"0123456789")
    assert storage.read_range("digits", offset, length) == b"0123456789"[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (500, 2)])
def test_a_range_past_the_end_is_an_error(storage: Storage, offset: int, length: int):
    storage.write("digits", b"0123456789")
    with pytest.raises(UserError, match=r"digits.*truncated"):
        storage.read_range("digits", offset, length)


def test_upload(storage: Storage, tmp_path: Path):
    local = tmp_path / "file"
    data = os.urandom(9 << 20)  # above the size from which boto3 sends several parts
    local.write_bytes(data)
    storage.upload("up/loaded", local)
    assert storage.read("up/loaded") == data
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storage.upload("x", tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["missing", "folder", "folder/missing", "folder/file/below"])
def test_missing_object(storage: Storage, path: str):
    storage.write("folder/file", b"x")
    assert not storage.exists(path)
    for read in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError) as caught:
            read(path)
        assert f"{storage.uri}/{path}" in str(caught.value)


def test_lists_below_a_folder_in_order(storage: Storage):
    # "-" and "." sort before "/", digits and letters after it.
    paths = ["a/x", "a-b/x", "a.txt", "a/b/c", "a0", "B", "a/y.png", "ä"]
    for number, path in enumerate(paths):
        storage.write(path, b"x" * number)
    sizes = dict(zip(paths, range(len(paths)), strict=True))
    assert list(storage.list()) == [Entry(path, sizes[path]) for path in sorted(paths)]
    below_a = ["a/b/c", "a/x", "a/y.png"]
    assert [entry.path for entry in storage.list("a")] == below_a
    assert [entry.path for entry in storage.list("a/")] == below_a
    assert list(storage.list("a0")) == []
    assert list(storage.list("nothing/here")) == []
    assert storage.folders() == ("a", "a-b")
    assert storage.folders("a/") == ("b",)
    assert storage.folders("nothing") == ()
    assert not storage.is_empty()
    assert storage.is_empty("b")


def test_delete(storage: Storage):
    storage.write("a/b", b"x")
    storage.delete("a/b")
    storage.delete("a/b")
    assert not storage.exists("a/b")
    assert storage.is_empty()


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a/", "a\\b", "a\0b"]
)
def test_no_path_leaves_the_root(storage: Storage, path: str):
    for use in (storage.read, storage.exists, storage.delete, lambda p: storage.write(p, b"x")):
        with pytest.raises(UserError, match="may not leave"):
            use(path)
    if path not in ("", "a/"):
        with pytest.raises(UserError, match="may not leave"):
            list(storage.list(path))


def test_travels_by_pickle_after_use(storage: Storage):
    storage.write("x", b"1")
    other = pickle.loads(pickle.dumps(storage))
    assert other.uri == storage.uri
    assert other.read("x") == b"1"
    assert b"test-secret" not in pickle.dumps(storage)


def test_uri_opens_the_same_storage(storage: Storage):
    storage.write("folder/x", b"1")
    assert open_storage(storage.uri).read("folder/x") == b"1"
    assert open_storage(f"{storage.uri}/folder").read("x") == b"1"


@pytest.mark.parametrize("uri", ["gs://bucket", "s3:/bucket", "s3://", "http://x/y", ""])
def test_other_uris_are_refused(uri: str):
    with pytest.raises(UserError, match="local directory or s3://bucket/prefix"):
        open_storage(uri)


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("data")
    monkeypatch.chdir("/")
    storage.write("x", b"1")
    assert (tmp_path / "data" / "x").read_bytes() == b"1"
    assert open_storage(f"file://{tmp_path}/data").read("x") == b"1"


def test_local_listing_skips_partial_files_and_link_cycles(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"1")
    (tmp_path / "real" / ".0123.partial").write_bytes(b"half")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    paths = [entry.path for entry in open_storage(str(tmp_path)).list()]
    assert "real/x" in paths
    assert "linked/x" in paths
    assert len(paths) < 10
    assert not any("partial" in path or "dangling" in path for path in paths)


def test_a_listing_leaves_out_what_was_deleted_meanwhile(tmp_path: Path):
    storage = open_storage(str(tmp_path))
    for path in ("a/1", "a/2", "a/3", "b/4", "c/5"):
        storage.write(path, b"x")
    below, beside = storage.list(), storage.files("a")
    assert [next(below).path, next(beside).path] == ["a/1", "a/1"]
    storage.delete("a/2")
    storage.delete("b/4")
    (tmp_path / "b").rmdir()
    assert [entry.path for entry in below] == ["a/3", "c/5"]
    assert [entry.path for entry in beside] == ["a/3"]


def test_local_write_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = open_storage(str(tmp_path))
    storage.write("x", b"old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"refuses it: no space left .*: make room"):
        storage.write("x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert storage.read("x") == b"old"


def test_a_file_in_place_of_a_folder(tmp_path: Path):
    storage = open_storage(str(tmp_path))
    storage.write("x", b"1")
    with pytest.raises(UserError, match="a file is where a folder must be"):
        storage.write("x/y", b"2")


def test_missing_bucket(s3_endpoint: str):
    storage = open_storage("s3://no-such-bucket/prefix")
    uses = (
        lambda: storage.read("x"),
        lambda: storage.exists("x"),
        lambda: storage.write("x", b"1"),
        lambda: list(storage.list()),
    )
    for use in uses:
        with pytest.raises(UserError, match=f"'no-such-bucket'.*{s3_endpoint}|{s3_endpoint}.*"):
            use()


def test_bucket_that_vanishes(s3_bucket: str, tmp_path: Path):
    storage = open_storage(s3_bucket)
    storage.write("x", b"1")
    storage.delete("x")
    storage._client.delete_bucket(Bucket=s3_bucket.removeprefix("s3://"))
    (tmp_path / "file").write_bytes(b"1")
    for use in (lambda: storage.read("x"), lambda: storage.upload("x", tmp_path / "file")):
        with pytest.raises(UserError, match="the bucket must exist"):
            use()


def test_unreachable_endpoint_fails_within_seconds(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hidden@127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_storage("s3://bucket").read("x")
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert f"127.0.0.1:{port}" in message
    assert "AWS_ENDPOINT_URL" in message
    assert not any(secret in message for secret in ("an-id", "a-secret", "hidden"))


def test_an_endpoint_that_never_answers_is_told_soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_s3, "_FIRST_TIMEOUT_S", 0.3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # Connects, and then nothing.
        endpoint = f"127.0.0.1:{frozen.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"s3://bucket: http://{endpoint} needs an answering"):
            open_storage("s3://bucket").read("x")
        assert time.monotonic() - start < 10


def test_the_first_request_is_given_up_within_20_s_and_later_ones_are_not():
    # Two attempts, each of a connection and an answer, and a pause of at most 1 s.
    first = 2 * max(storage_s3._CONNECT_TIMEOUT_S, storage_s3._FIRST_TIMEOUT_S) + 1
    assert first < 20
    assert storage_s3._ATTEMPTS * storage_s3._CONNECT_TIMEOUT_S > 30


@pytest.mark.parametrize("url", ["not a url", "127.0.0.1:9000"])
def test_malformed_endpoint(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        open_storage("s3://bucket").read("x")


def test_missing_credentials(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        open_storage("s3://bucket").exists("x")


def test_create_stores_only_where_there_is_nothing(storage: Storage):
    assert storage.create("a/lock", b"first")
    assert not storage.create("a/lock", b"second")
    assert storage.read("a/lock") == b"first"
    storage.delete("a/lock")
    assert storage.create("a/lock", b"third")


def test_replace_stores_only_in_place_of_what_is_expected(storage: Storage):
    assert not storage.replace("a/lock", b"new", b"")
    storage.write("a/lock", b"first")
    assert not storage.replace("a/lock", b"new", b"other")
    assert storage.read("a/lock") == b"first"
    assert storage.replace("a/lock", b"new", b"first")
    assert storage.read("a/lock") == b"new"


def test_an_object_that_was_replaced_and_deleted_leaves_no_file(tmp_path: Path):
    storage = open_storage(str(tmp_path))
    storage.write("lock", b"first")
    assert storage.replace("lock", b"second", b"first")
    assert list(storage.list()) == list(storage.files()) == [Entry("lock", 6)]
    storage.delete("lock")
    assert list(tmp_path.iterdir()) == []


def test_upload_of_an_open_file(storage: Storage, tmp_path: Path):
    data = os.urandom(9 << 20)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        storage.upload("up/loaded", file)
        storage.upload("up/again", file)  # It was neither closed nor spent.
    assert storage.read("up/loaded") == storage.read("up/again") == data


def test_clean_removes_half_written_files_below_a_folder(tmp_path: Path):
    storage = open_storage(str(tmp_path))
    for folder in ("a", "a/b", "c"):
        storage.write(f"{folder}/whole", b"1")
        (tmp_path / folder / ".0123.partial").write_bytes(b"half")
    assert storage.clean("a") == 2
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.partial"))
    assert left == ["c/.0123.partial"]
    assert storage.read("a/b/whole") == b"1"
    assert storage.clean("nowhere") == 0


def test_clean_aborts_uploads_that_never_ended(s3_bucket: str):
    storage = open_storage(f"{s3_bucket}/out")
    client, bucket = storage._client, s3_bucket.removeprefix("s3://")
    for key in ("out/a/x", "out/ab/x"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert storage.clean("a") == 1
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["out/ab/x"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_local_file_is_created_whole_and_once(tmp_path, monkeypatch, has_links):
    storage = LocalStorage(tmp_path)
    link = os.link

    def look(source, target):
        # What another process would find if this one were killed now.
        assert Path(source).read_bytes() == b"first"
        assert not Path(target).exists()
        if not has_links:
            raise PermissionError(errno.EPERM, "no links here")
        link(source, target)

    monkeypatch.setattr(os, "link", look)
    assert storage.create("a/lock", b"first")
    monkeypatch.setattr(os, "link", link)
    assert not storage.create("a/lock", b"second")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["lock"]
    assert storage.read("a/lock") == b"first"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ENAMETOOLONG", "use shorter names"),
        ("EROFS", "can be written to"),
        ("ESTALE", "mount the network file system again"),
        ("EIO", "check the disk"),
        ("EINVAL", "check the name"),
        ("EFBIG", "ulimit -f"),
        ("EDQUOT", "quota"),
        ("ENOSPC", "make room"),
        ("ETXTBSY", "check the name"),  # One that nobody thought of.
    ],
)
def test_whatever_the_system_refuses_is_one_line(tmp_path, monkeypatch, name, remedy):
    def refuse(*_, **__):
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))

    storage = open_storage(str(tmp_path))
    storage.write("a", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(outages, "_PAUSES_S", (0.0,))
        patch.setattr(os, "open", refuse)
        patch.setattr(os, "replace", refuse)
        patch.setattr(os, "stat", refuse)
        patch.setattr(os, "scandir", refuse)
        told = []
        for call in (
            lambda: storage.read("a"),
            lambda: storage.read_range("a", 0, 1),
            lambda: storage.write("a", b"2"),
            lambda: storage.version("a"),
            lambda: list(storage.list()),
            lambda: storage.folders(),
        ):
            with pytest.raises(UserError) as caught:
                call()
            told.append(str(caught.value))
            whole = name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "ESTALE")
            assert isinstance(caught.value, ObjectError) is not whole
    assert all(line.startswith(str(tmp_path)) for line in told)
    assert all(remedy in line and "\n" not in line for line in told)
    assert storage.read("a") == b"1"


def test_names_and_links_that_no_file_can_have_are_one_line(tmp_path):
    storage = open_storage(str(tmp_path))
    long = "n" * 300
    (tmp_path / "loop").symlink_to("loop")
    for call in (storage.read, storage.size, storage.exists, storage.version, storage.delete):
        with pytest.raises(UserError, match=r"file name too long.*use shorter names"):
            call(long)
    for path in (long, f"{long}/a"):
        with pytest.raises(UserError, match="file name too long"):
            storage.write(path, b"")
        with pytest.raises(UserError, match="file name too long"):
            storage.create(path, b"")
    with pytest.raises(UserError, match=r"symbolic links.*remove the links"):
        storage.read("loop")
    with pytest.raises(UserError, match="/proc/nope: must be a folder that can be made"):
        open_storage("/proc/nope").write("a", b"")
    with pytest.raises(UserError, match="/proc/nope: must be a folder that can be made"):
        open_storage("/proc/nope").create("a", b"")


def put_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1")


def test_a_folder_that_this_user_may_not_read_is_named():
    with open_folder() as root:
        put_files(root, "a/x", "b/c/y", "lost+found/z", "b/@eaDir/t")
        storage = LocalStorage(root)
        with refused(0, root / "lost+found", root / "b/@eaDir"):  # Nobody's content.
            assert [entry.path for entry in storage.list()] == ["a/x", "b/c/y"]
        with refused(0, root / "b/c"):
            for prefix in ("", "b", "b/c"):
                with pytest.raises(ObjectError, match=rf"^{root}/b/c: permission denied, so that"):
                    list(storage.list(prefix))
            assert storage.folders("b") == ("@eaDir", "c")
        assert len(list(storage.list())) == 4


def test_what_may_be_listed_and_not_entered_is_named_too():
    with open_folder() as root:
        put_files(root, "a/x", "closed/y")
        storage = LocalStorage(root)
        with refused(0o444, root / "a"), pytest.raises(ObjectError, match=rf"^{root}/a/x: permis"):
            list(storage.list())
        (root / "link").symlink_to(root / "closed/y")
        with refused(0, root / "closed"), pytest.raises(ObjectError, match="/link: permission"):
            list(storage.files())
