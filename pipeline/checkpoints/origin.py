"""Who started a run, by which command and from which commit: tags that MLflow's pages read."""

import getpass
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.checkpoints.environment import ROOT, UNKNOWN, git_commit, source_fingerprint
from pipeline.tracking.experiment import NOTE_TAG
from pipeline.tracking.redaction import MASK, is_secret_key, redact_text

USER_VARIABLES = ("LSEG_USER", "MLFLOW_TRACKING_USERNAME")
"""Who started a run, where all processes of a cluster have one user."""
_LINE_CHARS = 70


def tags_of_this_process() -> dict[str, str]:
    """The tags of a run that is no training's: its code, user and script; no description."""
    commit = git_commit()
    code = {"git_commit": commit, "source_fingerprint": source_fingerprint()}
    return code | origin_tags(commit, False, sys.argv)


def origin_tags(commit: str, is_new: bool, command: Sequence[str]) -> dict[str, str]:
    """Makes MLflow's own tags of a run: its user, source, commit and description.

    Args:
        commit: The commit, `unknown`, or a commit that ends in `-dirty`.
        is_new: Whether the run begins; what a person wrote about an older one stays.
        command: The script and its arguments; empty where no command makes the run alone.
    """
    tags = {}
    if user := _user():
        tags["mlflow.user"] = user
    if commit != UNKNOWN:
        tags["mlflow.source.git.commit"] = commit
    if not command:
        return tags
    script, words = _within(command[0]), command[1:]
    tags["mlflow.source.name"] = script
    if is_new:
        again = _in_lines(["python", script, *_masked(words)])
        tags[NOTE_TAG] = f"To train it again or go on with it:\n\n{again}\n"
    return tags


def _in_lines(words: Sequence[str]) -> str:
    """A command as an indented block of lines, each of which MLflow's page shows without a bar."""
    lines = [""]
    for word in map(shlex.quote, words):
        # An option stays with its value.
        is_option = word.startswith("--")
        if is_option and len(lines[-1]) + len(word) > _LINE_CHARS:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(f"    {line}" for line in " \\\n".join(lines).split("\n"))


def _within(script: str) -> str:
    """The script's place in the sources, if it is one of them."""
    path = Path(script).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else script


def _user() -> str:
    for name in USER_VARIABLES:
        if user := os.environ.get(name, "").strip():
            return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        return ""


def _masked(words: Sequence[str]) -> list[str]:
    """Arguments without the secrets in them, `--key value` and `--key=value`."""
    found, hides = [], False
    for word in words:
        key, equals, _ = word.partition("=")
        is_option = word.startswith("--")
        if hides and not is_option:
            found.append(MASK)
        elif is_option and equals and is_secret_key(key):
            found.append(f"{key}={MASK}")
        else:
            found.append(redact_text(word))
        hides = is_option and not equals and is_secret_key(key)
    return found
