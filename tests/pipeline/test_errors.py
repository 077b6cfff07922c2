import logging

import pytest

from jobs.cli import _OneLine
from pipeline.errors import printable


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
    formatter = _OneLine("%(message)s")
    for name, shown in (("pipeline.x", "a\\x1b[2Jb\\nc"), ("theirs", "a\x1b[2Jb\nc")):
        record = logging.LogRecord(name, logging.INFO, "", 0, "%s", ("a\x1b[2Jb\nc",), None)
        assert formatter.format(record) == shown
