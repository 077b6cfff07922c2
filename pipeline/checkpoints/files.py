"""A checkpoint folder: what its files and its tags are called, and what identifies its content.

    model.safetensors  config.yaml  labels.txt  texts.txt    the model: see `model.checkpoint_files`
    text_encoder.safetensors         its text tower, where that was trained or imported with it
    metrics.json  provenance.json    what it achieved, and what it was trained on by which code
    trainer.pt  order.txt            what training needs to continue; in the folders of steps only
    files.json                       size and digest of each: see `pipeline.checkpoints.whole`

`pipeline.checkpoints.provenance` reads and writes the third line, and
`pipeline.training.saving.checkpoint` the second and the fourth.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from model.checkpoint_files import DIGESTS, FILES, require_checkpoint
from model.checkpoint_files import (
    checkpoint_fingerprint as checkpoint_fingerprint,  # Among the others.
)
from pipeline.data.shards.format import Manifest

METRICS = "metrics.json"
PROVENANCE = "provenance.json"
TRAINER = "trainer.pt"
ORDER = "order.txt"

USABLE = (*FILES, PROVENANCE, METRICS, DIGESTS)
"""Files that are fetched and registered: all but those that only training needs; no pickles."""

TRAINING, VALIDATION = "manifest", "validation"
"""Prefixes of the tags that hold the fingerprints of training and of validation shards."""

WEIGHTS_TAG = "weights"
"""Tag of a model in MLflow: digest of the checkpoint's weights and configuration."""
CONTENT_TAG = "content"
"""Digest of all that the network is loaded from, labels too; older versions have none."""

MOST_NAMED = 12
"""Datasets that are named one by one; the classes of a few-shot benchmark are more."""


def step_folder(step: int) -> str:
    """Names the folder of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def step_of(place: str) -> int:
    """Returns the step that the last folder of a path or URI is named after; 0 for other names."""
    found = re.search(r"(?:^|/)step_(\d+)/?$", place)
    return int(found[1]) if found else 0


def manifest_tags(manifests: Mapping[str, Manifest], prefix: str = TRAINING) -> dict[str, str]:
    """Makes the tags that identify shards: `manifest.DATASET`, or `manifests` over very many.

    Args:
        manifests: Manifests by dataset.
        prefix: TRAINING or VALIDATION.
    """
    prints = {name: manifest.fingerprint for name, manifest in manifests.items()}
    if len(prints) <= MOST_NAMED:
        return {f"{prefix}.{name}": value for name, value in prints.items()}
    whole = hashlib.sha256("".join(f"{n} {v}\n" for n, v in prints.items()).encode()).hexdigest()
    return {f"{prefix}s": f"{whole[:16]} ({len(prints)} datasets)"}


def only_manifest_tags(tags: Mapping[str, str], prefix: str = TRAINING) -> dict[str, str]:
    """Selects those tags that `manifest_tags` made with this prefix."""
    return {t: v for t, v in tags.items() if t.split(".")[0] in (prefix, f"{prefix}s")}


def fingerprints(tags: Mapping[str, str]) -> dict[str, str]:
    """Reads the fingerprint of each training dataset from tags; empty where they are very many."""
    start = f"{TRAINING}."
    return {t.removeprefix(start): v for t, v in tags.items() if t.startswith(start)}


def content_fingerprint(folder: Path) -> str:
    """Returns 16 hex digits over all that a network is loaded from: weights, settings and labels.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
    """
    state = hashlib.sha256()
    require_checkpoint(folder)
    for name in FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                state.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return state.hexdigest()[:16]
