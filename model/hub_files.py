"""Whether a published file can be had here: from a folder, the hub's cache or the hub itself.

The libraries that download weights retry for most of a minute where there is no network, and end
in a message about caches. One short look before that lets the user know at once which file is
missing and how to bring it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from model.errors import ModelError, Unreachable

PROBE_TIMEOUT_S = 5.0

PREFETCHED = "LSEG_WEIGHTS"
"""Variable that names a place to which weights were fetched before."""

HUB_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that switch the hub off."""


def use_hub_folder(folder: Path, offline: bool = True) -> None:
    """Lets this process, and those that it starts, find files of the hub in a folder.

    Args:
        folder: laid out as the hub's own cache.
        offline: whether the hub is switched off, so that what the folder lacks is an error.
    """
    os.environ["HF_HUB_CACHE"] = str(folder)
    # The hub's library has read its variables already; others, such as transformers, may not have.
    constants.HF_HUB_CACHE = str(folder)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True


def require_hub_file(repo: str, filenames: Sequence[str], where: str, otherwise: str) -> None:
    """Makes sure that one of some equivalent files is cached, or that the hub answers.

    Args:
        repo: `owner/name` on the Hugging Face hub.
        filenames: files of which one is needed, the usual one first.
        where: the setting and value that asks for them.
        otherwise: what to do without a network, beside filling the cache.

    Raises:
        ModelError: neither; names the file and how to place it.
    """
    if any(isinstance(try_to_load_from_cache(repo, name), str) for name in filenames):
        return
    if place := os.environ.get(PREFETCHED):
        raise ModelError(
            f"{where}: needs {filenames[0]} of {repo}, which {PREFETCHED}={place} does not hold: "
            f"fetch it to there (jobs/fetch_weights.py), or unset {PREFETCHED}; {otherwise}"
        )
    reason, kind = "the hub is switched off by HF_HUB_OFFLINE", ModelError
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
            return
        except Exception as error:  # whatever the HTTP library of this version raises
            reason, kind = f"the hub does not answer: {type(error).__name__}", Unreachable
    raise kind(
        f"{where}: needs {filenames[0]} of {repo}, which is not on this machine, and {reason}: "
        f"fetch it where there is a network (`hf download {repo} {filenames[0]}`) and copy that "
        f"machine's Hugging Face cache to {constants.HF_HUB_CACHE} (or set HF_HOME); {otherwise}"
    )
