"""Our checkpoints: a directory with `model.safetensors`, `config.yaml`, `labels.txt`, `texts.txt`.

Only trained weights are stored; the text encoder is named in the configuration. Nothing in the
directory can run code when it is read. A trainer may add files and top-level keys to
`config.yaml`; the network's settings are its key `model`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig, config_from_dict
from model.errors import ModelError
from model.network import Network

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
LABELS = "labels.txt"
TEXTS = "texts.txt"
TEXT_WEIGHTS = "text_encoder.safetensors"

FILES = (CONFIG, WEIGHTS, LABELS, TEXTS, TEXT_WEIGHTS)
"""All that a network is loaded from; none of them is a pickle."""

resolvers: dict[str, Callable[[str], Path]] = {}
"""URI scheme ("s3", "models") -> function that fetches such a checkpoint into a local directory.
Empty here: this package knows no storage; a package that does puts its functions in, or names
them in its metadata as entry points of `RESOLVERS`."""

RESOLVERS = "lseg.resolvers"


def save_checkpoint(
    directory: Path | str,
    network: Network,
    labels: Sequence[str] = (),
    extra_config: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
) -> None:
    """Writes a checkpoint directory, which may exist.

    Args:
        directory: where.
        network: the network, on any device.
        labels: names of the training labels; `LSeg.labels` after loading.
        extra_config: further top-level keys of `config.yaml`.
        texts: texts that the text encoder was given for the labels, where these are not the names;
            then they are `LSeg.labels` after loading.
    """
    if any(len(label.splitlines()) > 1 for label in (*labels, *texts)):
        raise ModelError("labels: a label must be one line: remove the line break")
    if texts and len(texts) != len(labels):
        raise ModelError(f"texts: {len(texts)} for {len(labels)} labels: must be one for each")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(asdict(network.config)))  # Tuples as lists, as YAML knows them.
    config = {**(extra_config or {}), "model": plain}
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    (directory / LABELS).write_text("".join(f"{label}\n" for label in labels))
    if texts:
        (directory / TEXTS).write_text("".join(f"{text}\n" for text in texts))
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    temporary = directory / f"{WEIGHTS}.tmp"
    save_file(weights, temporary)
    temporary.replace(directory / WEIGHTS)


@dataclass(frozen=True)
class Stored:
    """The content of a checkpoint directory."""

    config: ModelConfig
    """Settings to build the network by: nothing that the directory holds is fetched again."""
    weights: dict[str, Tensor]
    labels: tuple[str, ...]
    """Names of the training labels; empty where none are stored."""
    texts: tuple[str, ...]
    """Texts that the text encoder was given for the labels; empty where it was given the names."""


def read_checkpoint(source: Path | str) -> Stored:
    """Reads a checkpoint directory, or one behind a URI that `local` can fetch.

    Raises:
        FileNotFoundError: a file is missing.
        ModelError: a file is damaged, or nothing can fetch the URI.
    """
    directory = require_checkpoint(local(source))
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
    return Stored(config, weights, _lines(directory / LABELS), _lines(directory / TEXTS))


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text().splitlines()) if path.is_file() else ()


def is_uri(source: Path | str) -> bool:
    """Whether a source has a scheme (`s3://...`, `models:/...`), and so is no local path."""
    scheme, colon, _ = str(source).partition(":/")
    return bool(colon) and len(scheme) > 1


def local(source: Path | str) -> Path:
    """Returns the directory of a checkpoint on this machine, after fetching it where necessary.

    Raises:
        ModelError: nothing here knows the scheme of the URI, or the fetch fails.
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


def require_checkpoint(directory: Path) -> Path:
    """Returns the directory, if it holds at least weights and a configuration.

    Raises:
        FileNotFoundError: names the file that is missing.
    """
    for path in (directory / WEIGHTS, directory / CONFIG):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file: name a checkpoint directory")
    return directory


def read_model_config(directory: Path) -> ModelConfig:
    """Reads the settings of a checkpoint's network.

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
