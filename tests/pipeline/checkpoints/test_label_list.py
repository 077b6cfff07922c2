"""Lists of labels as users save them."""

import pytest

from pipeline.checkpoints.label_list import read_label_list
from pipeline.errors import UserError


def test_lines_are_labels_whatever_wrote_them(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeff Straße \r\n\n\tsky".encode())
    assert read_label_list(path, "labels_file=x") == ("Straße", "sky")
    joined = ("می‌خواهم", "👨‍👩‍👧")
    path.write_text("\n".join(joined), encoding="utf-8")
    assert read_label_list(path, "labels_file=x") == joined


@pytest.mark.parametrize(
    "data",
    [
        "ü".encode("latin-1"),
        "road".encode("utf-16"),
        "road\nsky\n".encode("utf-16-le"),  # Valid UTF-8, with a NUL behind each letter.
        b"road\nsky\x1b[2J\n",
        b"",
        b"\n \n",
        b"road, sky, traffic light\n",
        b"x" * 5_000_000,
        b"road\n" + b"x" * 1001,
    ],
)
def test_what_is_no_list_is_refused(tmp_path, data):
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(UserError, match=r"^labels_file=x: "):
        read_label_list(tmp_path / "labels.txt", "labels_file=x")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path, reason in (
        (tmp_path, "is no file"),
        (tmp_path / "no", "no such file or directory: "),
    ):
        with pytest.raises(UserError, match=rf"^labels_file=x: {reason}"):
            read_label_list(path, "labels_file=x")
