import errno
import os
import time
from pathlib import Path

import pytest

from model.errors import ModelError
from pipeline.data.shards.format import find_manifests
from pipeline.errors import Outage, UserError
from pipeline.storage import outages
from pipeline.storage.base import Entry, ObjectError, Storage
from pipeline.storage.open import open_storage
from pipeline.training.driver.failures import _is_final

CALLS = {
    "read": lambda s: s.read("a/b") == b"first",
    "read_range": lambda s: s.read_range("a/b", 1, 2) == b"ir",
    "write": lambda s: s.write("a/b", b"second") is None,
    "create": lambda s: s.create("a/new", b"new"),
    "replace": lambda s: s.replace("a/b", b"second", b"first"),
    "list": lambda s: list(s.list()) == [Entry("a/b", 5), Entry("a/link", 5)],
    "files": lambda s: [entry.path for entry in s.files("a")] == ["a/b", "a/link"],
    "folders": lambda s: s.folders() == ("a",),
    "size": lambda s: s.size("a/b") == 5,
    "exists": lambda s: s.exists("a/b"),
    "version": lambda s: s.version("a/b").startswith("5-"),
    "delete": lambda s: s.delete("a/b") is None,
}
_OS = ("open", "stat", "scandir", "replace", "link", "unlink")


class Disk:
    """Calls of the operating system for a folder, of which some in a row fail."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, self.times = errno.EIO, 0
        for name in _OS:
            plain = getattr(os, name)

            def called(place, *args, _plain=plain, **kwargs):
                if self.times and str(place).startswith(str(folder)):
                    self.times -= 1
                    raise OSError(self.number, os.strerror(self.number), str(place))
                return _plain(place, *args, **kwargs)

            monkeypatch.setattr(os, name, called)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = open_storage(str(tmp_path))
    made.write("a/b", b"first")
    (tmp_path / "a/link").symlink_to("b")
    return made


@pytest.fixture
def disk(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(outages, "_PAUSES_S", (0.0, 0.0, 0.0))
    return Disk(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN"])
@pytest.mark.parametrize("call", CALLS)
def test_what_passes_is_not_noticed(storage: Storage, disk: Disk, call: str, name: str):
    disk.number, disk.times = getattr(errno, name), 2
    assert CALLS[call](storage)
    assert not disk.times


@pytest.mark.parametrize("call", CALLS)
def test_what_stays_is_an_outage_in_one_line(storage: Storage, disk: Disk, call: str):
    for name in ("EIO", "ESTALE", "ETIMEDOUT"):
        disk.number, disk.times = getattr(errno, name), 10**6
        with pytest.raises(Outage, match="the file system refuses it") as caught:
            CALLS[call](storage)
        assert "network file system" in str(caught.value)
        assert "\n" not in str(caught.value)
        # A file of its own may be damaged; of a server that is away all are lost.
        assert isinstance(caught.value, ObjectError) is (name == "EIO")
    disk.times = 0
    assert storage.read("a/b") == b"first"


def test_what_cannot_pass_is_told_at_once(storage: Storage, disk: Disk, monkeypatch):
    monkeypatch.setattr(outages, "_PAUSES_S", (60.0,))
    disk.number, disk.times = errno.EACCES, 1
    began = time.monotonic()
    with pytest.raises(UserError, match="permission denied"):
        storage.read("a/b")
    assert time.monotonic() - began < 30


def test_a_worker_begins_anew_after_an_outage_of_its_disk(storage: Storage, disk: Disk):
    storage.write("coco/train/manifest.json", b"{}")
    for number, is_final in ((errno.EIO, False), (errno.ETIMEDOUT, False), (errno.EACCES, True)):
        disk.number, disk.times = number, 10**6
        with pytest.raises((UserError, ModelError)) as caught:
            find_manifests(storage, "train")
        assert _is_final(caught.value) is is_final
