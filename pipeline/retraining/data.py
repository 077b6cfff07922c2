"""What the data is, as fingerprints of manifests, and how it differs from what a model has seen.

The tags of a training run and of a model version are the form: `manifest.DATASET` for the training
shards (one `manifests` over very many), `validation.DATASET` for those that models are judged on.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checkpoints.files import TRAINING, VALIDATION, only_manifest_tags


@dataclass(frozen=True)
class DataState:
    """The shards at one moment."""

    training: dict[str, str]
    """Tag -> fingerprint of the datasets that the mixture uses."""
    validation: dict[str, str]
    """Tag -> fingerprint of the datasets that models are compared on."""

    @property
    def tags(self) -> dict[str, str]:
        """All, as tags of a model version."""
        return self.training | self.validation

    @property
    def key(self) -> str:
        """16 hex digits that change with any of them."""
        text = json.dumps(self.tags, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(known: Mapping[str, str], now: DataState) -> list[str]:
    """What is not as a model knew it, in words; nothing when it is the same data.

    Args:
        known: Tags of a model version, others among them. One that does not say what it was
            trained on counts as changed; one that only does not say what it was judged on does not.
        now: The data.
    """
    found = []
    for prefix, tags, what in (
        (TRAINING, now.training, "training"),
        (VALIDATION, now.validation, "validation"),
    ):
        old = only_manifest_tags(known, prefix)
        if not old:
            if prefix == TRAINING:
                found.append("the champion does not say what it was trained on")
            continue
        for tag in sorted({*old, *tags}):
            name = tag.partition(".")[2] or "all datasets"
            if tag not in old:
                found.append(f"{what} shards of {name} are new")
            elif tag not in tags:
                found.append(f"{what} shards of {name} are gone")
            elif old[tag] != tags[tag]:
                found.append(f"{what} shards of {name} changed ({old[tag]} -> {tags[tag]})")
    return found
