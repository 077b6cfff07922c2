"""Our checkpoints: a directory with `model.safetensors`, `config.yaml`, `labels.txt`, `texts.txt`.

Only trained weights are stored; the text encoder is named in the configuration, and a text tower
that was trained, or came with a network, is `text_encoder.safetensors` beside the others. Nothing
in the directory can run code when it is read, nor take more memory or time than its files are
worth. A trainer may add files and top-level keys to `config.yaml`; the network's settings are its
key `model`.

Libraries follow the name of a text encoder to folders and to the hub, and import code from there
where a file beside the weights asks for it. So a checkpoint may name only what cannot lead anywhere
else: the stand-in, an entry of our own table of packages, which are read as data, or a model of
open_clip's own list with a tag of that list or with the weights that lie in its folder. Every other
place is taken from the user alone (`followed`).
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from model.checkpoint_files import (
    CONFIG,
    LABELS,
    TEXT_WEIGHTS,
    TEXTS,
    WEIGHTS,
    check_files,
    is_one_line,
    read_labels,
    read_model_config,
    require_checkpoint,
)
from model.config import (
    NOT_PUBLISHED,
    STAND_IN,
    TABLE,
    ModelConfig,
    TextConfig,
    reads_pretrained,
)
from model.errors import ModelError
from model.network import Storable
from model.outline import MAX_EMBED_DIM, stored_tensors
from model.packages import PACKAGE
from model.settings_file import shown

ENCODER = "LSEG_TEXT_ENCODER"
"""Variable with the `text.encoder` to use for checkpoints that name one which is not followed."""
PRETRAINED = "LSEG_TEXT_PRETRAINED"
"""The same for `text.pretrained`."""

# No "/" and no ":": neither a path, nor an address, nor `hf-hub:NAME`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
KINDS_OF_PLACES = (TABLE, "sentence-transformers/", "local-dir:")
"""Beginnings of encoders that may lie in a file or folder."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")

HEADS = {
    "dot": ("decoder.head.weight", 4, 0),
    "dot-aligned": ("decoder.head.weight", 4, 0),
    "cost": ("cost.aggregator.text_guidance_projection.0.weight", 2, 1),
}
"""By kind of head: a tensor, its number of dimensions, and which of them is the length of the text
vectors."""

resolvers: dict[str, Callable[[str], Path]] = {}
"""URI scheme ("s3", "models") -> function that fetches such a checkpoint into a local directory.
Empty here: this package knows no storage; a package that does puts its functions in, or names
them in its metadata as entry points of `RESOLVERS`."""

RESOLVERS = "lseg.resolvers"


def save_checkpoint(
    directory: Path | str,
    network: Storable,
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
    for label in (*labels, *texts):
        if not is_one_line(label):
            raise ModelError(
                f"labels: {shown(label)}: a label must be one line: remove the line break"
            )
    if texts and len(texts) != len(labels):
        raise ModelError(f"texts: {len(texts)} for {len(labels)} labels: must be one for each")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(asdict(network.config)))  # Tuples as lists, as YAML knows them.
    config = {**(extra_config or {}), "model": plain}
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (directory / CONFIG).write_text(settings, encoding="utf-8")
    for name, lines in ((LABELS, labels), (TEXTS, texts)):
        if lines or name == LABELS:
            content = "".join(f"{line}\n" for line in lines)
            (directory / name).write_text(content, encoding="utf-8")
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    temporary = directory / f"{WEIGHTS}.tmp"
    save_file(weights, temporary)
    # Readable by whom the other files are: safetensors writes for the owner alone.
    shutil.copymode(directory / CONFIG, temporary)
    temporary.replace(directory / WEIGHTS)


@dataclass(frozen=True)
class Stored:
    """The content of a checkpoint directory, but for the weights themselves."""

    config: ModelConfig
    """Settings to build the network by: nothing that the directory holds is fetched again."""
    weights: Path
    """The file of the weights; `model.outline.load_weights` reads it."""
    embed_dim: int
    """Length of the text vectors that the network was trained on."""
    labels: tuple[str, ...]
    """Names of the training labels; empty where none are stored."""
    texts: tuple[str, ...]
    """Texts that the text encoder was given for the labels; empty where it was given the names."""


def read_checkpoint(source: Path | str, text: TextConfig | None = None) -> Stored:
    """Reads a checkpoint directory, or one behind a URI that `local` can fetch.

    Args:
        source: the directory or URI.
        text: the text encoder in place of one that is not followed; see `followed`.

    Raises:
        MissingCheckpoint: a file is missing.
        ModelError: a file is damaged, is not the one that was written or names what is not
            followed, or nothing can fetch the URI.
    """
    directory = require_checkpoint(local(source))
    check_files(directory)
    config = read_model_config(directory)
    # The file brings every weight: the published ones are not to be fetched first.
    config = replace(
        config,
        backbone=replace(config.backbone, pretrained=False, weights=""),
        text=followed(config.text, directory, text),
    )
    name, num_dims, dim = HEADS[config.head.kind]
    head, _ = stored_tensors(directory / WEIGHTS).get(name, ((), ""))
    if len(head) != num_dims or not 1 <= head[dim] <= MAX_EMBED_DIM:
        there = f"a {name} of shape {shown(head)}" if head else f"no {name}"
        raise ModelError(
            f"{directory / WEIGHTS}: has {there}: must be the weights of an LSeg, with text "
            f"vectors of 1 to {MAX_EMBED_DIM} numbers: check the file"
        )
    labels, texts = read_labels(directory)
    return Stored(config, directory / WEIGHTS, head[dim], labels, texts)


def text_variables() -> dict[str, str]:
    """The variables that are set, for the workers of a job on other machines."""
    return {name: os.environ[name] for name in (ENCODER, PRETRAINED) if os.environ.get(name)}


def followed(named: TextConfig, folder: Path, own: TextConfig | None = None) -> TextConfig:
    """Returns the text encoder to use for a checkpoint.

    Args:
        named: what its config.yaml names.
        folder: where it lies.
        own: what the caller uses in place of one that is not followed; None: what the variables
            name.

    Raises:
        ModelError: the checkpoint names a place, and the caller names none.
    """
    encoder = own.encoder if own else os.environ.get(ENCODER, "")
    pretrained = own.pretrained if own else os.environ.get(PRETRAINED, "")
    # That a package is one of our table was checked when the settings were made.
    if not (named.encoder.startswith(PACKAGE) or is_name(named.encoder)):
        if not encoder:
            raise _refused(folder, "encoder", named.encoder, ENCODER)
        # Nobody's weights stand for those that the network was trained with.
        kept = "" if named.pretrained == TEXT_WEIGHTS else pretrained
        named = replace(named, encoder=encoder, pretrained=kept or named.pretrained)
    # What the caller named is followed wherever it leads, but the weights only if they are too.
    if not reads_pretrained(named.encoder):
        return named
    if pretrained and named.pretrained == pretrained:
        return named
    if named.pretrained == TEXT_WEIGHTS:
        beside = folder / TEXT_WEIGHTS
        if not beside.is_file():
            raise ModelError(
                f"{beside}: no such file: config.yaml names it as the weights of the text encoder: "
                "fetch the checkpoint again"
            )
        return replace(named, pretrained=str(beside))
    if is_tag(named.pretrained):
        return named
    if not pretrained:
        raise _refused(folder, "pretrained", named.pretrained, PRETRAINED)
    return replace(named, pretrained=pretrained)


def is_name(encoder: str) -> bool:
    """Whether an encoder is a plain name, as those of open_clip's own list, and no place."""
    return bool(_NAME.fullmatch(encoder))


def is_tag(pretrained: str) -> bool:
    """Whether `text.pretrained` is a tag of open_clip's, and no file."""
    return bool(_NAME.fullmatch(pretrained)) and not pretrained.endswith(_SUFFIXES)


def _refused(folder: Path, key: str, value: str, variable: str) -> ModelError:
    kind = value.removesuffix(NOT_PUBLISHED)
    if value.endswith(NOT_PUBLISHED) and kind in ("", *KINDS_OF_PLACES):
        form = f"{kind}PATH" if kind or key == "pretrained" else "its name or place"
        what = "text encoder" if key == "encoder" else "text encoder's weights"
        return ModelError(
            f"{folder / 'config.yaml'}: model.text.{key}={value}: the {what} of the training lay "
            "in a file or folder whose place is not published: name the same one on this machine: "
            f"{variable}={form}"
        )
    return ModelError(
        f"{folder / 'config.yaml'}: model.text.{key}={shown(value)}: is not followed, since it may "
        f"run code: a checkpoint may name {STAND_IN}, a package of our table or an encoder and a "
        "tag of open_clip's own list: if you trust one, name it yourself: "
        f"{variable}={shown(value)[1:-1]}"
    )


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
