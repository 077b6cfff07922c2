"""The files of a checkpoint directory: their names, whether they are whole, and what they say.

Reads no tensor and does without torch, for processes that only look a checkpoint over.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from model.config import ModelConfig, config_from_dict
from model.errors import MissingCheckpoint, ModelError
from model.settings_file import MAX_BYTES, parse_json, parse_yaml, text_of

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
LABELS = "labels.txt"
TEXTS = "texts.txt"
TEXT_WEIGHTS = "text_encoder.safetensors"
"""The file of a text tower that was trained or imported with a network."""

_STEP = re.compile(r"(step|best)_\d+")
_MOST_RUNS = 6
_PUBLISHED = (".ckpt", ".pth", ".pt")
"""Suffixes of files that `jobs/import_official.py` reads."""

MAX_LABELS = 65_535
"""Labels of a checkpoint; what an index of 16 bits can tell apart."""

FILES = (CONFIG, WEIGHTS, LABELS, TEXTS, TEXT_WEIGHTS)
"""All that a network is loaded from; none of them is a pickle."""
DIGESTS = "files.json"
"""File with the size and the digest of each file, where who wrote the directory noted them."""


def is_one_line(label: str) -> bool:
    """Whether a label survives a file of one label a line, which many characters would end."""
    return label.splitlines() in ([], [label])


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
    """Says what is wrong with a file, "" for nothing; `expected` is None where none is recorded."""
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
