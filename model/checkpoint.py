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

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from model.config import (
    NOT_PUBLISHED,
    STAND_IN,
    TABLE,
    ModelConfig,
    TextConfig,
    config_from_dict,
    reads_pretrained,
)
from model.errors import MissingCheckpoint, ModelError
from model.network import Storable
from model.outline import MAX_EMBED_DIM, stored_tensors
from model.packages import PACKAGE
from model.settings_file import MAX_BYTES, parse_json, parse_yaml, shown, text_of

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
LABELS = "labels.txt"
TEXTS = "texts.txt"
TEXT_WEIGHTS = "text_encoder.safetensors"
"""The file of a text tower that was trained or imported with a network."""

ENCODER = "LSEG_TEXT_ENCODER"
"""Variable with the `text.encoder` to use for checkpoints that name one which is not followed."""
PRETRAINED = "LSEG_TEXT_PRETRAINED"
"""The same for `text.pretrained`."""

# No "/" and no ":": neither a path, nor an address, nor `hf-hub:NAME`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
KINDS_OF_PLACES = (TABLE, "sentence-transformers/", "local-dir:")
"""Beginnings of encoders that may lie in a file or folder."""
_STEP = re.compile(r"(step|best)_\d+")
_MOST_RUNS = 6
_PUBLISHED = (".ckpt", ".pth", ".pt")
"""Suffixes of files that `jobs/import_official.py` reads."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")

HEADS = {
    "dot": ("decoder.head.weight", 4, 0),
    "dot-aligned": ("decoder.head.weight", 4, 0),
    "cost": ("cost.aggregator.text_guidance_projection.0.weight", 2, 1),
}
"""By kind of head: a tensor, its number of dimensions, and which of them is the length of the text
vectors."""
MAX_LABELS = 65_535
"""Labels of a checkpoint; what an index of 16 bits can tell apart."""

FILES = (CONFIG, WEIGHTS, LABELS, TEXTS, TEXT_WEIGHTS)
"""All that a network is loaded from; none of them is a pickle."""
DIGESTS = "files.json"
"""File with the size and the digest of each file, where who wrote the directory noted them."""

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


def is_one_line(label: str) -> bool:
    """Whether a label survives a file of one label a line, which many characters would end."""
    return label.splitlines() in ([], [label])


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


def read_labels(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads the names of a checkpoint's labels, and the texts that the encoder was given for them.

    Raises:
        ModelError: a file is damaged, or the two do not belong together.
    """
    labels, texts = (_lines(directory / name) for name in (LABELS, TEXTS))
    if texts and len(texts) != len(labels):
        raise ModelError(
            f"{directory / TEXTS}: has {len(texts)} lines, and {LABELS} has {len(labels)}: must "
            "have one for each label: fetch both again"
        )
    if len(labels) > MAX_LABELS:
        raise ModelError(
            f"{directory / LABELS}: has {len(labels)} lines: must be at most {MAX_LABELS} labels: "
            "fetch it again"
        )
    return labels, texts


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(text_of(_content(path), str(path)).splitlines()) if path.is_file() else ()


def _content(path: Path) -> bytes:
    """The first bytes of a file, one more than it may have."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}: make it readable") from None


def parse_digests(content: bytes, where: str) -> dict[str, tuple[int, str]]:
    """Reads the record of a directory's files: size and SHA-256 of each, by name.

    Raises:
        ModelError: it is damaged.
    """
    try:
        record = parse_json(content, where)
        return {str(name): (int(v["size"]), str(v["sha256"])) for name, v in record.items()}
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise ModelError(f"{where}: is damaged: fetch the checkpoint again") from None


def check_files(directory: Path, names: Iterable[str] = FILES) -> None:
    """Refuses a directory in which a file is not the one that was written, if that is recorded.

    Args:
        directory: the checkpoint; one without a record passes.
        names: the files that count; others may be missing, as where only some were fetched.

    Raises:
        ModelError: a file differs, is missing or came later; names it.
    """
    record = directory / DIGESTS
    if not record.is_file():
        return
    expected = parse_digests(_content(record), str(record))
    for name in names:
        fault = _fault(directory / name, expected.get(name))
        if fault:
            raise ModelError(
                f"{directory / name}: {fault}, says {DIGESTS} beside it: fetch the checkpoint "
                f"again, or delete {DIGESTS} if you changed the file on purpose"
            )


def _fault(path: Path, expected: tuple[int, str] | None) -> str:
    """What is wrong with a file of a recorded size and digest, None if it has none."""
    if expected is None:
        return "is no file of this checkpoint" if path.exists() else ""
    if not path.is_file():
        return "is missing"
    size, digest = expected
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes and had {size}"
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}: make it readable") from None
    return "" if same else "is not what was written: its bytes differ"


def checkpoint_fingerprint(folder: Path) -> str:
    """Returns 16 hex digits over the weights and the network's settings.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
    """
    state = hashlib.sha256()
    require_checkpoint(folder)
    for name in (WEIGHTS, CONFIG):
        with (folder / name).open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:16]


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
        MissingCheckpoint: names the file that is missing, and the checkpoints below the directory
            where it is that of a run, or of several.
    """
    if directory.is_file():
        raise MissingCheckpoint(f"{directory}: {_of_a_file(directory)}")
    for path in (directory / WEIGHTS, directory / CONFIG):
        if not path.is_file():
            there = below_a_run(directory) if directory.is_dir() else ": there is no such directory"
            raise MissingCheckpoint(f"{path}: no such file: name a checkpoint directory{there}")
    return directory


def _of_a_file(path: Path) -> str:
    """What to name in place of a file."""
    if (path.parent / CONFIG).is_file():
        return f"is a file of a checkpoint: name the directory, {path.parent}"
    if path.suffix in _PUBLISHED:
        return "is a file: make a checkpoint directory of it (jobs/import_official.py), and name it"
    return "is a file: name a checkpoint directory"


def below_a_run(directory: Path) -> str:
    """Says which checkpoints lie in a run's directory, or in those of runs; "" for none."""
    if found := named_below(path.parent.name for path in directory.glob(f"*/{WEIGHTS}")):
        return found
    places = (path.parent.relative_to(directory) for path in directory.glob(f"*/*/{WEIGHTS}"))
    steps = sorted(str(place) for place in places if _STEP.fullmatch(place.name))
    runs = {step.partition("/")[0]: step for step in steps}  # The newest of each.
    if not runs:
        return ""
    more = f", and {len(runs) - _MOST_RUNS} more" if len(runs) > _MOST_RUNS else ""
    shown = ", ".join([*runs.values()][:_MOST_RUNS])
    return f": this is that of runs, with {shown}{more}: add one to the path"


def named_below(names: Iterable[str]) -> str:
    """Says which of some folders are checkpoints of a run, for a message; "" for none."""
    found = sorted(name for name in names if _STEP.fullmatch(name))
    if not found:
        return ""
    steps = [name for name in found if name.startswith("step_")]
    newest = f", of which {steps[-1]} is the newest" if steps else ""
    return f": this is that of a run, with {', '.join(found[-8:])}{newest}: add one to the path"


def read_model_config(directory: Path) -> ModelConfig:
    """Reads the settings of a checkpoint's network, as they are written there.

    Raises:
        FileNotFoundError: the directory has no such file.
        ModelError: the file is damaged.
    """
    path = directory / CONFIG
    content = parse_yaml(_content(path), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelError(f"{path}: has no mapping `model`: must be a checkpoint's configuration")
    try:
        return config_from_dict(ModelConfig, content["model"], "model")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
