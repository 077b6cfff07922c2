"""What a checkpoint was trained on, as far as its own files tell."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model.checkpoint import CONFIG, LABELS
from pipeline.data.shards import Manifest, load_manifest
from pipeline.data.storage import open_storage
from pipeline.errors import UserError


@dataclass(frozen=True)
class Provenance:
    """A checkpoint's past."""

    labels: tuple[str, ...]
    """What it was trained on; empty where the checkpoint does not say."""
    config: dict[str, Any]
    """Its whole config.yaml."""
    tags: dict[str, str]
    """Its provenance.json: git commit, fingerprints of the training shards, versions."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """Of the training shards, by dataset, where they can still be read unchanged."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets of the training mixture."""
        prefix = "manifest."
        return tuple(key.removeprefix(prefix) for key in self.tags if key.startswith(prefix))

    @property
    def is_known(self) -> bool:
        """Whether the checkpoint says what it was trained on."""
        return bool(self.labels) and bool(self.datasets)

    @property
    def step(self) -> int:
        """Optimiser steps, 0 where unknown."""
        return int(self.tags.get("step", 0) or 0)


def read_provenance(folder: Path, uri: str = "") -> Provenance:
    """Reads a checkpoint's files, and the manifests of its training shards where they still are.

    Args:
        folder: The checkpoint on this machine.
        uri: Where it was fetched from; files that were not fetched are read there.

    Raises:
        UserError: A file is damaged.
    """
    config = yaml.safe_load(_text(folder, uri, CONFIG) or "") or {}
    labels = tuple((_text(folder, uri, LABELS) or "").splitlines())
    try:
        tags = json.loads(_text(folder, uri, "provenance.json") or "{}")
        metrics = json.loads(_text(folder, uri, "metrics.json") or "{}")
    except ValueError as error:
        raise UserError(f"checkpoint={uri or folder}: provenance.json: not JSON: {error}") from None
    tags = {str(key): str(value) for key, value in tags.items()}
    match = re.search(r"step_(\d+)/?$", uri or str(folder))
    step = metrics.get("step") or (int(match[1]) if match else 0)
    tags.setdefault("step", str(int(step)))
    return Provenance(labels, config, tags, _manifests(config, tags))


def _text(folder: Path, uri: str, name: str) -> str | None:
    if (folder / name).is_file():
        return (folder / name).read_text(encoding="utf-8")
    if uri.startswith("s3://"):
        try:
            return open_storage(uri).read(name).decode()
        except FileNotFoundError:
            return None
    return None


def _manifests(config: dict[str, Any], tags: dict[str, str]) -> dict[str, Manifest]:
    """Training manifests that still have the fingerprint that the checkpoint remembers."""
    data = config.get("data") or {}
    shards, split = data.get("shards"), data.get("train_split", "train")
    found = {}
    for key, wanted in tags.items():
        name = key.removeprefix("manifest.")
        if not shards or name == key:
            continue
        try:
            manifest = load_manifest(open_storage(shards), name, split)
        except (UserError, OSError):
            continue
        if manifest.fingerprint == wanted:
            found[name] = manifest
    return found
