"""Whether published weights can be had here: in the local cache, or from the hub.

The libraries that download weights retry for most of a minute where there is no network, and end
in a message about caches. One short look before that lets the user know at once which file is
missing and how to bring it.
"""

from collections.abc import Sequence

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from model.errors import ModelError

PROBE_TIMEOUT_S = 5.0


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
    reason = "the hub is switched off by HF_HUB_OFFLINE"
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
            return
        except Exception as error:  # whatever the HTTP library of this version raises
            reason = f"the hub does not answer: {type(error).__name__}"
    raise ModelError(
        f"{where}: needs {filenames[0]} of {repo}, which is not on this machine, and {reason}: "
        f"fetch it where there is a network (`hf download {repo} {filenames[0]}`) and copy that "
        f"machine's Hugging Face cache to {constants.HF_HUB_CACHE} (or set HF_HOME); {otherwise}"
    )
