"""What a checkpoint was trained on, as far as its own files tell."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model.checkpoint import CONFIG, LABELS, local
from pipeline.checkpoints.fingerprint import checkpoint_fingerprint
from pipeline.data.shards.format import Manifest, load_manifest
from pipeline.errors import UserError
from pipeline.storage.open import open_storage


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
        return bool(self.labels) and (bool(self.datasets) or self.has_many)

    @property
    def has_many(self) -> bool:
        """Whether the datasets were too many to be named, as few-shot classes are."""
        return "manifests" in self.tags

    @property
    def step(self) -> int:
        """Optimiser steps, 0 where unknown."""
        return int(self.tags.get("step", 0) or 0)


def read_provenance(folder: Path, uri: str = "") -> Provenance:
    """Reads a checkpoint's files, and the manifests of its training shards where they still are.

    Args:
        folder: The checkpoint on this machine.
        uri: Where it was fetched from, which may tell its step.

    Raises:
        UserError: A file is damaged.
    """
    config = _mapping(folder, CONFIG, yaml.safe_load)
    labels = tuple((_text(folder, LABELS) or "").splitlines())
    values = _mapping(folder, "provenance.json", json.loads)
    tags = {str(key): str(value) for key, value in values.items()}
    found = re.search(r"step_(\d+)/?$", uri or str(folder))
    try:
        step = int(_mapping(folder, "metrics.json", json.loads).get("step") or 0)
    except (TypeError, ValueError):
        step = 0
    tags.setdefault("step", str(step or (int(found[1]) if found else 0)))
    return Provenance(labels, config, tags, _manifests(config, tags))


def _text(folder: Path, name: str) -> str | None:
    path = folder / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _mapping(folder: Path, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a file, empty where there is none."""
    try:
        content = parse(_text(folder, name) or "{}")
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint={folder}: {name} is damaged: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"checkpoint={folder}: {name} is damaged: it must hold keys and values")
    return content


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


def open_checkpoint(uri: str) -> tuple[Path, Provenance]:
    """The checkpoint on this machine, and its past.

    Raises:
        UserError: There is none.
    """
    try:
        folder = local(uri)
        checkpoint_fingerprint(folder)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={uri}: {error}") from None
    return folder, read_provenance(folder, uri)
