"""The fingerprint of a checkpoint: what its figures depend on."""

import hashlib
from pathlib import Path

from model.checkpoint import CONFIG, WEIGHTS


def checkpoint_fingerprint(folder: Path) -> str:
    """16 hex digits over the weights and the network's settings.

    Raises:
        FileNotFoundError: It is no checkpoint.
    """
    state = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file: name a checkpoint directory")
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:16]
