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

    Tags of a model version, others among them, say what it knew. One that does not say what it was
    trained on counts as changed; one that only does not say what it was judged on does not.
    """
    trained, judged = (only_manifest_tags(known, prefix) for prefix in (TRAINING, VALIDATION))
    found = [] if trained else ["the champion does not say what it was trained on"]
    for what, old, new in (
        ("training", trained, now.training),
        ("validation", judged, now.validation),
    ):
        for tag in sorted(old.keys() | new.keys()) if old else ():
            if old.get(tag) != new.get(tag):
                changed = f"changed ({old.get(tag)} -> {new.get(tag)})"
                how = "are new" if tag not in old else "are gone" if tag not in new else changed
                found.append(f"{what} shards of {tag.partition('.')[2] or 'all datasets'} {how}")
    return found
