"""A list of labels in a text file, one a line, as users write it."""

import unicodedata
from pathlib import Path

from model.settings_file import MAX_BYTES
from pipeline.errors import UserError, printable

MAX_LETTERS = 1000
"""Letters of a label, far beyond what a text encoder reads of one."""


def require_short(label: str, where: str) -> None:
    """Refuses a label that no text encoder reads to its end.

    Raises:
        UserError: It is longer than MAX_LETTERS.
    """
    if len(label) > MAX_LETTERS:
        raise UserError(
            f"{where}: names {printable(label[:40])!r}... of {len(label)} letters: a label must "
            f"have at most {MAX_LETTERS}: write it shorter"
        )


def short_label(label: str) -> str:
    """A label for a message or a line of a log: long ones often differ at their ends alone."""
    return label if len(label) <= 80 else f"{label[:40]}...{label[-36:]}"


def read_label_list(path: str | Path, where: str) -> tuple[str, ...]:
    """Reads the labels of a file; blank lines do not count.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        where: The setting and its value, for messages.

    Raises:
        UserError: It cannot be read, is no text, or names no label.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{where}: is no file: name a text file with one label a line")
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{where}: is larger than {MAX_BYTES // 2**20} MiB: name fewer labels")
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{where}: {reason}: check the path, and that it can be read") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: cannot be read as UTF-8 text: {error}: save it as UTF-8, one label a line"
        ) from None
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels:
        raise UserError(f"{where}: names no label: write one label a line")
    if len(labels) == 1 and "," in labels[0]:
        raise UserError(
            f"{where}: names one label, {printable(labels[0])[:60]!r} with commas: write one a line"
        )
    for label in labels:
        require_short(label, where)
        # Marks that join letters, as in Persian or in emoji, are no control characters.
        if any(unicodedata.category(letter) == "Cc" for letter in label):
            raise UserError(
                f"{where}: names {printable(label)[:60]}: a label must be plain text, without "
                "control characters: save the file as UTF-8, one label a line"
            )
    return labels
