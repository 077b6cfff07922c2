"""Names the weights that a run starts from and reads words with: by content, not by a place."""

import hashlib
from pathlib import Path

from model.backbone import own_file
from model.config import TABLE, ModelConfig
from model.packages import (
    BACKBONE_PACKAGES,
    PACKAGE,
    TEXT_PACKAGES,
    WeightsPackage,
    package_of,
)
from model.text.open_clip_tower import WEIGHT_SUFFIXES


def weights_tags(config: ModelConfig) -> dict[str, str]:
    """Makes the tags `weights.backbone` and `weights.text`, for weights that lie on this machine.

    Returns:
        A package with its version and the SHA-256 of the weights, or a file's name with its
        SHA-256; no tag for weights that a library names and fetches.
    """
    backbone, text = config.backbone, config.text
    tags = {}
    if backbone.pretrained and backbone.weights.startswith(PACKAGE):
        entry = package_of(BACKBONE_PACKAGES, backbone.weights, "backbone.weights")
        tags["weights.backbone"] = _of_package(entry)
    elif backbone.pretrained and (file := own_file(backbone)):
        tags["weights.backbone"] = _of_file(file)
    if text.encoder.startswith(PACKAGE):
        tags["weights.text"] = _of_package(package_of(TEXT_PACKAGES, text.encoder, "text.encoder"))
    elif text.encoder.startswith(TABLE):
        tags["weights.text"] = _of_file(text.encoder.removeprefix(TABLE))
    elif text.pretrained.endswith(WEIGHT_SUFFIXES) and Path(text.pretrained).is_file():
        tags["weights.text"] = _of_file(text.pretrained)
    return tags


def _of_package(entry: WeightsPackage) -> str:
    return f"{entry.package} {entry.version} sha256:{entry.sha256}"


def _of_file(name: str) -> str:
    path = Path(name).expanduser()
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
