"""The exceptions that end a job without a traceback, and what their messages are made of."""

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake, in the form `where = value: what is allowed: what to do`.

    Jobs print the message without a traceback and exit with `exit_code`.
    """

    exit_code = 2


class Outage(UserError):
    """A storage that does not answer, refuses or is full: a later attempt may succeed."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as clusters do, rather than by Ctrl-C."""


_REMEDIES = {
    errno.ENOSPC: "make room, or give another place",
    errno.EDQUOT: "make room within the quota, or give another place",
    errno.EROFS: "give a place that can be written to",
    errno.EFBIG: "give a file system, or a limit (ulimit -f), that takes files of this size",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ELOOP: "remove the links that lead to each other",
    errno.ESTALE: "mount the network file system again",
    errno.EIO: "check the disk or the network file system",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EACCES: "give this user access",
}


_NO_TEMPORARY = "No usable temporary directory"
"""What `tempfile` says where /tmp, /var/tmp and the working folder are all full or read-only."""


def told_by_system(error: OSError) -> str:
    """What the system refuses and what to do, as the end of a message: `what: remedy`.

    Returns:
        An empty string for errors that may as well be a mistake of a program, such as a file that
        is missing.
    """
    if error.errno == errno.ENOENT and _NO_TEMPORARY in str(error):
        return (
            "no folder for temporary files can be written to: make room in /tmp, or set TMPDIR to "
            "a folder with room"
        )
    if error.errno not in _REMEDIES:
        return ""
    return f"{(error.strerror or str(error)).lower()}: {_REMEDIES[error.errno]}"


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Names the closest allowed word, as a clause to append to a message.

    Returns:
        `"; did you mean 'x'?"`, or an empty string when nothing is close.
    """
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    """Names from outside, as one line that no terminal, table or log takes for a command.

    Every control character, line break, unpaired surrogate and invisible mark is written as its
    escape: a file may be called `a<newline>b`, or hold the codes that clear a screen.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
