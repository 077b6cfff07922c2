"""Our checkpoints: a directory with `model.safetensors`, `config.yaml`, `labels.txt`, `texts.txt`.

Only trained weights are stored; the text encoder is named in the configuration. Nothing in the
directory can run code when it is read. Whoever trains may add files and top-level keys to
`config.yaml`; the network's settings are its key `model`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import entry_points
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
TEXTS = "texts.txt"
TEXT_WEIGHTS = "text_encoder.safetensors"

FILES = (CONFIG, WEIGHTS, LABELS, TEXTS, TEXT_WEIGHTS)
"""All that a network is loaded from; none of them is a pickle."""

resolvers: dict[str, Callable[[str], Path]] = {}
"""URI scheme ("s3", "models") -> what fetches such a checkpoint into a local directory. Empty
here: this package knows no storage; whoever does puts its functions in, or names them in its
package's metadata as entry points of `RESOLVERS`."""

RESOLVERS = "lseg.resolvers"


def save_checkpoint(
    directory: Path | str,
    lseg: LSeg,
    labels: Sequence[str] = (),
    extra_config: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
) -> None:
    """Writes a checkpoint directory, which may exist.

    Args:
        directory: where.
        lseg: the network, on any device.
        labels: the names of what it was trained on; `LSeg.labels` after loading.
        extra_config: further top-level keys of `config.yaml`.
        texts: how the text encoder was shown the labels, where not by their names; then they are
            `LSeg.labels` after loading.
    """
    if any(len(label.splitlines()) > 1 for label in (*labels, *texts)):
        raise ModelError("labels: a label must be one line: remove the line break")
    if texts and len(texts) != len(labels):
        raise ModelError(f"texts: {len(texts)} for {len(labels)} labels: must be one for each")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {**(extra_config or {}), "model": _plain(asdict(lseg.config))}
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    (directory / LABELS).write_text("".join(f"{label}\n" for label in labels))
    if texts:
        (directory / TEXTS).write_text("".join(f"{text}\n" for text in texts))
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
        source: the directory, or a URI that `local` can fetch.
        device: where the weights go.

    Returns:
        The network in evaluation mode, and its labels (empty where none are stored).

    Raises:
        FileNotFoundError: a file is missing.
        ModelError: the files are damaged or do not fit each other.
    """
    directory = local(source)
    for name in (WEIGHTS, CONFIG):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: no such file: name a checkpoint directory"
            )
    config = read_model_config(directory)
    # The file brings every weight: the published ones are not to be fetched first.
    config = replace(config, backbone=replace(config.backbone, pretrained=False))
    beside = directory / TEXT_WEIGHTS
    if config.text.pretrained == TEXT_WEIGHTS and beside.is_file():
        # A text tower that was imported with the network.
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
    return lseg.to(device).eval(), _lines(directory / LABELS)


def read_texts(directory: Path) -> tuple[str, ...]:
    """How the text encoder was shown the labels of a checkpoint; empty where by their names."""
    return _lines(directory / TEXTS)


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text().splitlines()) if path.is_file() else ()


def is_uri(source: Path | str) -> bool:
    """Whether it has a scheme (`s3://...`, `models:/...`), and so is no path of this machine."""
    scheme, colon, _ = str(source).partition(":/")
    return bool(colon) and len(scheme) > 1


def local(source: Path | str) -> Path:
    """The directory of a checkpoint on this machine; fetches it where it is elsewhere.

    Raises:
        ModelError: nothing here knows the scheme of the URI, or it cannot be fetched.
    """
    if not is_uri(source):
        return Path(source)
    scheme = str(source).partition(":/")[0]
    if scheme == "file":
        return Path(str(source).removeprefix("file://").removeprefix("file:"))
    if scheme not in resolvers:
        for point in entry_points(group=RESOLVERS, name=scheme):
            resolvers.setdefault(scheme, point.load())
    if scheme not in resolvers:
        raise ModelError(
            f"{source}: nothing here can fetch {scheme}: URIs (known: {sorted(resolvers)}): "
            "install this project (`make setup`), or import pipeline.checkpoints.resolvers before, "
            "or fetch the directory yourself"
        )
    return resolvers[scheme](str(source))


def read_model_config(directory: Path) -> ModelConfig:
    """The settings of a checkpoint's network.

    Raises:
        FileNotFoundError: the directory has no such file.
        ModelError: the file is damaged.
    """
    path = directory / CONFIG
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
