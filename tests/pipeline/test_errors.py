import logging
import os
import tempfile

import pytest

from pipeline.errors import printable, told_by_system
from pipeline.log_lines import Lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ü 東京 a+b.jpg", "ü 東京 a+b.jpg"),
        ("a\nb\x1b]0;x\x07.jpg", "a\\nb\\x1b]0;x\\x07.jpg"),
        ("\u202egpj.exe\u2028", "\\u202egpj.exe\\u2028"),
        (b"bad\xff.jpg".decode(errors="surrogateescape"), "bad\\udcff.jpg"),
    ],
)
def test_names_are_one_line_of_text(name: str, shown: str):
    assert printable(name) == shown
    shown.encode()


def test_a_line_of_the_log_stays_one_line():
    formatter = Lines(as_text=True)
    for name, shown in (("pipeline.x", "a\\x1b[2Jb\\nc"), ("theirs", "a\x1b[2Jb\nc")):
        record = logging.LogRecord(name, logging.INFO, "", 0, "%s", ("a\x1b[2Jb\nc",), None)
        assert formatter.format(record)[len("2026-11-29 00:50:05 ") :] == shown


def test_a_machine_without_room_for_temporary_files_is_no_defect(monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileNotFoundError) as error:
        tempfile.gettempdir()
    assert "set TMPDIR to a folder with room" in told_by_system(error.value)
    assert told_by_system(FileNotFoundError(2, "No such file or directory", "x")) == ""
