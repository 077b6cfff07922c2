"""Whether a stored checkpoint is whole: sizes and digests of its files, written beside them.

A copy that was cut off, or a disk that lost its last writes, leaves a folder that looks like a
checkpoint. `files.json` says what each file was when the checkpoint was written; of folders without
one the headers are opened.
"""

import hashlib
import json
import struct
from pathlib import Path

from model.checkpoint_files import CONFIG, DIGESTS, LABELS, WEIGHTS, parse_digests
from model.errors import ModelError
from model.settings_file import parse_yaml
from pipeline.checkpoints.files import ORDER, TRAINER
from pipeline.storage.base import Storage

NEEDED = (WEIGHTS, CONFIG, LABELS, TRAINER, ORDER)
"""Files without which a training cannot continue."""

_READ_WHOLE_MIB = 64
"""Files in object storage up to this size are read for their digest; of larger ones the size and
the header are checked, because they would have to be fetched twice."""
_PART = 32 * 2**20
_MOST_HEADER = 100 * 2**20
"""Bytes of a safetensors header, as its library limits them."""
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
"""What the last record of a zip archive, such as trainer.pt, begins with, and its length."""


def write_digests(folder: Path) -> None:
    """Notes the size and the SHA-256 of each file of a local folder, in the folder.

    Raises:
        OSError: There is no room for it.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != DIGESTS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.name] = {"size": path.stat().st_size, "sha256": digest}
    (folder / DIGESTS).write_text(json.dumps(found, indent=1) + "\n")


def fault_of(storage: Storage, folder: str) -> str:
    """Says what is wrong with a training checkpoint.

    Args:
        storage: Where the run lies.
        folder: The checkpoint's folder in it.

    Returns:
        One clause with the name of a file; empty where the checkpoint is whole.

    Raises:
        UserError: The storage does not answer.
    """
    sizes = {entry.path.rsplit("/", 1)[-1]: entry.size for entry in storage.files(folder)}
    for name in NEEDED:
        if name not in sizes:
            return f"{name} is missing"
    for name, size in sizes.items():
        if not size and name in (WEIGHTS, CONFIG, TRAINER):
            return f"{name} is empty"
    if DIGESTS in sizes:
        fault = _differing(storage, folder, sizes)
        if fault:
            return fault
    return _unreadable(storage, folder, sizes)


def _differing(storage: Storage, folder: str, sizes: dict[str, int]) -> str:
    """The first file that is not what the checkpoint's own record says."""
    try:
        expected = parse_digests(storage.read(f"{folder}/{DIGESTS}"), DIGESTS)
    except ModelError:
        return f"{DIGESTS} is damaged"
    for name, (size, _) in expected.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]} bytes and had {size}"
    most = _READ_WHOLE_MIB * 2**20 if "://" in storage.uri else None
    for name, (size, digest) in expected.items():
        if (most is None or size <= most) and _digest(storage, f"{folder}/{name}", size) != digest:
            return f"{name} is not what was written: its bytes differ"
    return ""


def _digest(storage: Storage, path: str, size: int) -> str:
    state = hashlib.sha256()
    for offset in range(0, size, _PART):
        state.update(storage.read_range(path, offset, min(_PART, size - offset)))
    return state.hexdigest()


def _unreadable(storage: Storage, folder: str, sizes: dict[str, int]) -> str:
    """The first file whose header does not fit its size, or which cannot be parsed."""
    try:
        parse_yaml(storage.read(f"{folder}/{CONFIG}"), CONFIG)
    except ModelError as error:
        return str(error)
    size = sizes[WEIGHTS]
    if size < 8:
        return f"{WEIGHTS} is cut"
    (length,) = struct.unpack("<Q", storage.read_range(f"{folder}/{WEIGHTS}", 0, 8))
    if not 2 <= length <= min(_MOST_HEADER, size - 8):
        return f"{WEIGHTS} is cut or damaged"
    try:
        header = json.loads(storage.read_range(f"{folder}/{WEIGHTS}", 8, length))
        ends = [v["data_offsets"][1] for n, v in header.items() if n != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return f"{WEIGHTS} is damaged"
    if whole != size:
        return f"{WEIGHTS} has {size} bytes of {whole}"
    tail = min(sizes[TRAINER], _ZIP_END_BYTES)
    end = storage.read_range(f"{folder}/{TRAINER}", sizes[TRAINER] - tail, tail)
    if not end.startswith(_ZIP_END):
        return f"{TRAINER} is cut"
    return ""
