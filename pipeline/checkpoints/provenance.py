"""What a checkpoint says of itself beside its weights: settings, labels, metrics, and its past."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.checkpoint import local, save_checkpoint
from model.checkpoint_files import CONFIG, FILES, LABELS, TEXTS, check_files, require_checkpoint
from model.errors import ModelError
from model.network import Storable
from model.settings_file import MAX_BYTES, parse_json, parse_yaml, text_of
from pipeline.checkpoints.files import METRICS, PROVENANCE, fingerprints, step_of
from pipeline.data.pixels.checks import MAX_SIDE_PX
from pipeline.data.shards.format import Manifest, load_manifest
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

_MOST_DIGITS = 16


@dataclass(frozen=True)
class TrainedSize:
    """How large a training saw images."""

    base_px: int = 520
    """Long side of an image at scale 1."""
    crop_px: int = 480
    """Side of the crops."""


PUBLISHED_SIZE = TrainedSize()
"""The sizes of LSeg as published."""


@dataclass(frozen=True)
class Provenance:
    """The text files of a checkpoint folder."""

    labels: tuple[str, ...]
    """Names of the training labels; empty where the checkpoint does not say."""
    config: dict[str, Any]
    """The whole config.yaml."""
    tags: dict[str, str]
    """The content of provenance.json: git commit, fingerprints of the shards, versions."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """Manifests of the training shards by dataset, of those that `open_checkpoint` could read."""
    texts: tuple[str, ...] = ()
    """Texts that the text encoder was given for the labels; empty where it was given the names."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The content of metrics.json: the step, and the metrics that it was reported with."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets of the training mixture."""
        return tuple(fingerprints(self.tags))

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
        step = self.tags.get("step", "")
        return int(step) if step.isdecimal() and len(step) < _MOST_DIGITS else 0

    @property
    def trained_size(self) -> TrainedSize:
        """How large the training saw images; the published sizes where the checkpoint is silent.

        The one answer for prediction, evaluation and service.

        Raises:
            UserError: It says something that is no size.
        """
        said = self.group("data", "augment")
        sizes = {key: said[key] for key in ("base_px", "crop_px") if key in said}
        for key, value in sizes.items():
            if type(value) is not int or not 1 <= value <= MAX_SIDE_PX:
                raise UserError(
                    f"{CONFIG}: data.augment.{key}={str(value)[:40]!r}: must be a whole number of "
                    f"pixels, at most {MAX_SIDE_PX}: mend the checkpoint's file"
                )
        return TrainedSize(**sizes)

    def group(self, *names: str) -> dict[str, Any]:
        """Returns a group of settings of `config`, such as `data`, `augment`; empty without one."""
        found: Any = self.config
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


def save_model(folder: Path, network: Storable, provenance: Provenance) -> None:
    """Writes what using a model takes, but not what continuing its training takes."""
    extra = {key: value for key, value in provenance.config.items() if key != "model"}
    save_checkpoint(folder, network, provenance.labels, extra, provenance.texts)
    for name, content in ((METRICS, provenance.metrics), (PROVENANCE, provenance.tags)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def read_provenance(place: Path | str, uri: str = "") -> Provenance:
    """Reads the text files of a checkpoint.

    Args:
        place: The checkpoint's folder: a path, or `s3://bucket/folder`.
        uri: Address from which the folder was fetched, which may name its step.

    Raises:
        UserError: A file is damaged, or the storage does not answer.
    """
    storage = open_storage(str(place))
    config = _mapping(storage, CONFIG, parse_yaml)
    values = _mapping(storage, PROVENANCE, parse_json)
    metrics = _mapping(storage, METRICS, parse_json)
    labels, texts = (tuple(_text(storage, name).splitlines()) for name in (LABELS, TEXTS))
    tags = {str(key): str(value) for key, value in values.items()}
    step = metrics.get("step")
    named = step if isinstance(step, int) else 0
    tags.setdefault("step", str(named or step_of(uri or str(place))))
    return Provenance(labels, config, tags, texts=texts, metrics=metrics)


def open_checkpoint(uri: str) -> tuple[Path, Provenance]:
    """Fetches a checkpoint, and reads also the manifests of its training shards.

    Returns:
        Its folder on this machine, and what it says of itself.

    Raises:
        UserError: There is no checkpoint, or one of its files is damaged.
        ModelError: A file is not the one that was written.
    """
    try:
        folder = require_checkpoint(local(uri))
        check_files(folder, (*FILES, PROVENANCE, METRICS))
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={uri}: {error}") from None
    provenance = read_provenance(folder, uri)
    return folder, replace(provenance, manifests=unchanged_manifests(provenance))


def unchanged_manifests(provenance: Provenance) -> dict[str, Manifest]:
    """Reads the training manifests that still have the fingerprint in the checkpoint's tags."""
    data = provenance.group("data")
    shards, split = data.get("shards", ""), data.get("train_split", "train")
    found = {}
    for name, wanted in fingerprints(provenance.tags).items() if shards else ():
        try:
            manifest = load_manifest(open_storage(shards), name, split)
        except (UserError, OSError):
            continue
        if manifest.fingerprint == wanted:
            found[name] = manifest
    return found


def _content(storage: Storage, name: str) -> bytes:
    """The content of a file; empty where there is none."""
    try:
        size = storage.size(name)
        if size > MAX_BYTES:
            raise UserError(
                f"checkpoint={storage.uri}: {name} is damaged: it has {size} bytes, and must have "
                f"at most {MAX_BYTES}"
            )
        return storage.read(name)
    except FileNotFoundError:
        return b""


def _text(storage: Storage, name: str) -> str:
    try:
        return text_of(_content(storage, name), name)
    except ModelError as error:
        reason = str(error).replace(f"{name}: is", f"{name} is", 1)
        raise UserError(f"checkpoint={storage.uri}: {reason}") from None


def _mapping(storage: Storage, name: str, parse: Callable[[bytes, str], Any]) -> dict[str, Any]:
    """The keys and values of a file; empty where there is none."""
    try:
        content = parse(_content(storage, name) or b"{}", name)
    except ModelError as error:
        reason = str(error).replace(f"{name}: is", f"{name} is", 1)
        raise UserError(f"checkpoint={storage.uri}: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"checkpoint={storage.uri}: {name} is damaged: it must hold keys and values"
        )
    return content
