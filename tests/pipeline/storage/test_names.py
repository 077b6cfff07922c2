import os
import threading
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.errors import UserError
from pipeline.storage.base import ObjectError
from pipeline.storage.names import is_hidden, why_unusable
from pipeline.storage.open import open_storage
from pipeline.storage.s3 import S3Storage


@pytest.mark.parametrize(
    "name", ["win\\z.jpg", "w//z.jpg", "/z.jpg", "z/", "a/../z", "./z", "z\0", "bad\udcff.jpg"]
)
def test_names_that_are_no_paths(name: str):
    assert why_unusable(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b c/ü+&#%;'.jpg", "a..b/.c", "a\nb.jpg"])
def test_odd_names_that_are_paths(name: str):
    assert not why_unusable(name)


def test_what_systems_add_is_no_content():
    hidden = ["._x.jpg", "a/.b/c.jpg", "@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a/x.jpg"]
    hidden += ["@Recycle/x.jpg", "#snapshot/daily/x.jpg", "$Recycle.Bin/x.jpg", "__macosx/x.jpg"]
    hidden += ["System Volume Information/x.jpg", "@eadir/x.jpg", "a/@Recently-Snapshot/x.jpg"]
    assert all(map(is_hidden, hidden))
    assert not any(map(is_hidden, ["x.jpg", "a.b/c.jpg", "eaDir/x.jpg", "recycle/x.jpg"]))


def test_odd_names_are_listed_and_stop_nothing(tmp_path: Path):
    (tmp_path / "win\\dir").mkdir()
    for name in (b"win\\z.jpg", b"bad\xff.jpg", b"win\\dir/a.jpg", b"good.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"x")
    storage = open_storage(str(tmp_path))
    listed = [entry.path for entry in storage.list()]
    assert len(listed) == 4
    assert [name for name in listed if not why_unusable(name)] == ["good.jpg"]
    assert storage.folders() == ()


def test_odd_keys_of_a_bucket_are_left_out_of_a_dataset(s3_bucket: str):
    storage = open_storage(f"{s3_bucket}/odd")
    assert isinstance(storage, S3Storage)
    storage.write("classes.csv", b"id,name\n0,wall\n")
    for stem in ("a", "w//z", "win\\z"):
        for key in (f"odd/images/{stem}.jpg", f"odd/masks/{stem}.png"):
            storage._client.put_object(Bucket=storage._bucket, Key=key, Body=b"x")
    listing = open_own("shop", OwnDataset(root=storage.uri, val_fraction=0.0)).listing("train")
    assert [source.image for source in listing.sources] == ["images/a.jpg"]
    reasons = {bad.name: bad.reason for bad in listing.left_out}
    assert len(reasons) == 4
    assert "empty part" in reasons["images/w//z.jpg"]
    assert "backslash" in reasons["masks/win\\z.png"]


@pytest.mark.parametrize(
    ("code", "operation", "of_one"),
    [
        ("AccessDenied", "GetObject", True),
        ("403", "HeadObject", True),
        ("AccessDenied", "ListObjectsV2", False),
        ("ExpiredToken", "GetObject", False),
        ("InternalError", "GetObject", False),
    ],
)
def test_a_refused_object_is_one_bad_sample_and_a_refusing_bucket_is_not(code, operation, of_one):
    storage = S3Storage("bucket", "")
    error = ClientError({"Error": {"Code": code}}, operation)
    with pytest.raises(UserError, match="the credentials must allow it") as caught:
        with storage._translated("images/a.jpg"):
            raise error
    assert isinstance(caught.value, ObjectError) == of_one


def test_a_pipe_or_a_device_is_no_file_and_blocks_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    storage = open_storage(str(tmp_path))
    assert list(storage.list()) == []
    found: list[type] = []

    def read() -> None:
        for name in ("pipe", "zero", "."):
            for call in (lambda n: storage._read(n), lambda n: storage._read_range(n, 0, 9)):
                try:
                    call(name)
                except FileNotFoundError as error:
                    found.append(type(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert found == [FileNotFoundError] * 6
