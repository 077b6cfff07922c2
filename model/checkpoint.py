"""Our checkpoints: a directory with `model.safetensors`, `config.yaml` and `labels.txt`.

Only trained weights are stored; the text encoder is named in the configuration. Nothing in the
directory can run code when it is read. Whoever trains may add files and top-level keys to
`config.yaml`; the network's settings are its key `model`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import ModelConfig, config_from_dict
from model.errors import ModelError
from model.lseg import LSeg, build_lseg

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
LABELS = "labels.txt"

resolvers: dict[str, Callable[[str], Path]] = {}
"""URI scheme ("s3", "models") -> what fetches such a checkpoint into a local directory. Empty
here: this package knows no storage; whoever does puts its functions in."""


def save_checkpoint(
    directory: Path | str,
    lseg: LSeg,
    labels: Sequence[str] = (),
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint directory, which may exist.

    Args:
        directory: where.
        lseg: the network, on any device.
        labels: what it was trained on; `LSeg.labels` after loading.
        extra_config: further top-level keys of `config.yaml`.
    """
    if any("\n" in label for label in labels):
        raise ModelError("labels: a label must be one line: remove the line break")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {**(extra_config or {}), "model": _plain(asdict(lseg.config))}
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    (directory / LABELS).write_text("".join(f"{label}\n" for label in labels))
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in lseg.state_dict().items()
    }
    temporary = directory / f"{WEIGHTS}.tmp"
    save_file(weights, temporary)
    temporary.replace(directory / WEIGHTS)


def load_checkpoint(
    source: Path | str, device: torch.device | str = "cpu"
) -> tuple[LSeg, tuple[str, ...]]:
    """Reads a checkpoint directory.

    Args:
        source: the directory, or a URI whose scheme is in `resolvers`.
        device: where the weights go.

    Returns:
        The network in evaluation mode, and its labels (empty where none are stored).

    Raises:
        FileNotFoundError: a file is missing.
        ModelError: the files are damaged or do not fit each other.
    """
    directory = _resolve(source)
    for name in (WEIGHTS, CONFIG):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: no such file: name a checkpoint directory"
            )
    config = _read_config(directory / CONFIG)
    # The file brings every weight: the published ones are not to be fetched first.
    config = replace(config, backbone=replace(config.backbone, pretrained=False))
    beside = directory / config.text.pretrained
    if beside.is_file():  # a text tower that was imported with the network
        config = replace(config, text=replace(config.text, pretrained=str(beside)))
    try:
        weights = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{directory / WEIGHTS}: is no complete safetensors file ({error}): fetch it again"
        ) from error
    head = weights.get("decoder.head.weight")
    if head is None:
        raise ModelError(
            f"{directory / WEIGHTS}: has no decoder.head.weight: must be the weights of an LSeg: "
            "check the file"
        )
    lseg = build_lseg(config, embed_dim=head.shape[0])
    try:
        lseg.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"{directory / WEIGHTS}: does not fit {directory / CONFIG}: {error}"
        ) from error
    labels = directory / LABELS
    names = tuple(labels.read_text().splitlines()) if labels.is_file() else ()
    return lseg.to(device).eval(), names


def _resolve(source: Path | str) -> Path:
    scheme, colon, _ = str(source).partition(":/")
    if not colon or len(scheme) < 2:
        return Path(source)
    if scheme == "file":
        return Path(str(source).removeprefix("file://").removeprefix("file:"))
    if scheme not in resolvers:
        raise ModelError(
            f"{source}: nothing here can fetch {scheme}: URIs (known: {sorted(resolvers)}): fetch "
            "the directory first, or register model.checkpoint.resolvers"
        )
    return resolvers[scheme](str(source))


def _read_config(path: Path) -> ModelConfig:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: is no YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelError(f"{path}: has no mapping `model`: must be a checkpoint's configuration")
    return config_from_dict(ModelConfig, content["model"], "model")


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that plain YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
