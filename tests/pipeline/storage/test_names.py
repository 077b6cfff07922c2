import os
import threading
from pathlib import Path

import pytest

from pipeline.storage.names import is_hidden, why_unusable
from pipeline.storage.open import open_storage


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
    assert all(map(is_hidden, hidden))
    assert not any(map(is_hidden, ["x.jpg", "a.b/c.jpg", "eaDir/x.jpg"]))


def test_odd_names_are_listed_and_stop_nothing(tmp_path: Path):
    (tmp_path / "win\\dir").mkdir()
    for name in (b"win\\z.jpg", b"bad\xff.jpg", b"win\\dir/a.jpg", b"good.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"x")
    storage = open_storage(str(tmp_path))
    listed = [entry.path for entry in storage.list()]
    assert len(listed) == 4
    assert [name for name in listed if not why_unusable(name)] == ["good.jpg"]
    assert storage.folders() == ()


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
