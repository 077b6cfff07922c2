"""A checkpoint as MLflow shows it: the run's tags that name its address, and its logged model."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoints.files import (
    CONTENT_TAG,
    VALIDATION,
    WEIGHTS_TAG,
    checkpoint_fingerprint,
    content_fingerprint,
    only_manifest_tags,
)
from pipeline.checkpoints.provenance import read_provenance
from pipeline.checkpoints.signature import SIGNATURE
from pipeline.tracking.page_records import LoggedCheckpoint
from pipeline.training.config import RunConfig

BEST_TAG, LAST_TAG = "checkpoint.best", "checkpoint.last"
"""Tags of a run: the addresses of its best model and of its newest checkpoint."""
FOLDER_TAG = "checkpoints"
"""Tag of a run: the folder of all its checkpoints."""

_NAME = "best"


def address_of(run: RunConfig, name: str = "") -> str:
    """The address of a folder of the run's, or of the one of all."""
    return f"{run.storage.rstrip('/')}/{run.name}/{name}".rstrip("/")


def logged_checkpoint(
    folder: Path, address: str, step: int, tags: Mapping[str, str]
) -> LoggedCheckpoint:
    """Describes the best model of a run.

    Args:
        folder: A copy of it on this machine.
        address: Where it lies in the run's storage.
        step: Its step.
        tags: Tags of the run, which name the validation's data.
    """
    found = read_provenance(folder)
    digests = {WEIGHTS_TAG: checkpoint_fingerprint(folder)}
    digests[CONTENT_TAG] = content_fingerprint(folder)
    code = {key: found.tags.get(key, "") for key in ("git_commit", "source_fingerprint")}
    params = {
        "backbone": found.group("model", "backbone").get("name", ""),
        "text_encoder": found.group("model", "text").get("encoder", ""),
        "labels": str(len(found.labels)),
    }
    validation = only_manifest_tags(tags, VALIDATION)
    return LoggedCheckpoint(
        name=_NAME,
        address=address,
        step=step,
        tags={**digests, **code, **only_manifest_tags(found.tags)},
        params={key: str(value) for key, value in params.items() if value},
        metrics={
            key: float(value)
            for key, value in found.metrics.items()
            if key.startswith("val/") and isinstance(value, int | float)
        },
        signature=SIGNATURE,
        digests={key.removeprefix(f"{VALIDATION}."): value for key, value in validation.items()},
    )
