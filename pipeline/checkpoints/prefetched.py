"""Published weights (CLIP's text tower, timm's backbones), fetched once and used without the hub.

    <place>/weights.json                                  names, sizes and digests; written last
    <place>/models--OWNER--NAME/refs/main
    <place>/models--OWNER--NAME/snapshots/COMMIT/FILE     the layout of the Hugging Face hub's cache

A place is a folder that all nodes share, or `s3://`, from which each node makes one copy. Where
`LSEG_WEIGHTS` names one, nothing is asked of the hub: hundreds of workers that start at once would
be, at every start, and a hub that does not answer would end the run.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from model.config import ModelConfig
from model.hub_files import HUB_SWITCHES, PREFETCHED, use_hub_folder
from pipeline.errors import Outage, UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.storage.places import make_private

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "LSEG_WEIGHTS_CACHE_DIR"
LISTING = "weights.json"
_PART_BYTES = 32 << 20


def use_prefetched() -> None:
    """Lets this process find published weights where `LSEG_WEIGHTS` says, and nowhere else.

    Raises:
        UserError: There are none at the place, or not those of its listing.
        Outage: The storage does not answer, or the node's disk takes no copy.
    """
    place = os.environ.get(PREFETCHED, "")
    if not place:
        return
    if "://" in place:
        use_hub_folder(_node_copy(place))
        return
    folder = Path(place).expanduser()
    if not (folder / LISTING).is_file():
        raise UserError(_none_at(place))
    use_hub_folder(folder)


def fetch(config: ModelConfig, place: str) -> list[str]:
    """Fetches what a model needs from the hub to a place, by loading it once.

    What is there already stays, so that one place may hold the weights of several recipes.

    Args:
        config: The model, as a recipe names it.
        place: A local folder, or `s3://bucket/prefix`.

    Returns:
        A line for each file of the place: name and size.

    Raises:
        ModelError: There are no such weights, or the hub does not answer.
        UserError: The place cannot be written to, or the model needs nothing of the hub.
    """
    for name in HUB_SWITCHES:
        if os.environ.get(name, "0").lower() in ("1", "true", "yes", "on"):
            raise UserError(f"{name}={os.environ[name]}: weights come from the hub: unset it here")
    if not _asks_the_hub(config):
        raise UserError(
            "model: needs nothing of the hub: its text encoder and backbone are the stand-in, "
            "untrained, or files that the settings name: set LSEG_WEIGHTS for other recipes alone"
        )
    os.environ.pop(PREFETCHED, None)  # Which may name the place that is to be filled.
    storage = open_storage(place)
    if "://" not in place:
        use_hub_folder(Path(storage.uri), offline=False)
        _load(config)
        return _publish(Path(storage.uri), None)
    with tempfile.TemporaryDirectory(prefix="lseg-weights-") as folder:
        use_hub_folder(Path(folder), offline=False)
        _load(config)
        return _publish(Path(folder), storage)


def _asks_the_hub(config: ModelConfig) -> bool:
    from model.backbone import has_own_weights
    from model.text import asks_the_hub

    by_backbone = config.backbone.pretrained and not has_own_weights(config.backbone)
    return by_backbone or asks_the_hub(config.text)


def _load(config: ModelConfig) -> None:
    from model.lseg import build_lseg
    from model.text import build_text_encoder

    encoder = build_text_encoder(config.text)
    encoder.encode(["weights"])
    build_lseg(config, encoder.dim)


def _publish(folder: Path, storage: Storage | None) -> list[str]:
    """Lists what a folder of the hub's layout holds, and copies it to a storage if there is one."""
    found = {}
    for path in sorted(folder.glob("models--*/**/*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and PurePosixPath(name).parts[1] in ("refs", "snapshots"):
            found[name] = path
    if not any("/snapshots/" in name for name in found):
        raise UserError(
            "model: its weights are not on the hub, and so not fetched: name the file of each in "
            "model.backbone.weights or model.text.pretrained"
        )
    files = {name: {"size": p.stat().st_size, "sha256": _digest(p)} for name, p in found.items()}
    if storage is None:
        storage = open_storage(str(folder))
    else:
        files = _listed(storage) | files if storage.exists(LISTING) else files
        for name, path in found.items():
            logger.info("storing %s", name)
            storage.upload(name, path)
    document = {"format": 1, "files": dict(sorted(files.items()))}
    storage.write(LISTING, (json.dumps(document, indent=1) + "\n").encode())
    return [f"{name}  {entry['size']:,} bytes" for name, entry in document["files"].items()]


def _listed(storage: Storage) -> dict[str, Any]:
    """The files of a place by its listing, none of which may lead out of it."""
    try:
        document = json.loads(storage.read(LISTING))
        files = document["files"]
        # No `assert`, which PYTHONOPTIMIZE takes out: names become paths on the node.
        sound = document["format"] == 1 and all(
            name.startswith("models--")
            and ".." not in PurePosixPath(name).parts
            and int(entry["size"]) >= 0
            and len(entry["sha256"]) == 64
            for name, entry in files.items()
        )
        if not sound:
            raise ValueError("of another format, or with a name that leads elsewhere")
    except FileNotFoundError:
        raise UserError(_none_at(storage.uri)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{storage.uri}/{LISTING}: is no listing of weights ({type(error).__name__}): fetch "
            "them again with jobs/fetch_weights.py"
        ) from None
    return files


def _node_copy(place: str) -> Path:
    """Makes this node's copy of a place in S3, unless it is there already."""
    storage = open_storage(place)
    files = _listed(storage)
    folder = _private_folder()
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    copy = folder / key
    if copy.is_dir():
        return copy
    with FileLock(folder / f"{key}.lock"):
        if copy.is_dir():  # Another process of this node has made it meanwhile.
            return copy
        partial = folder / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            logger.info("copying the weights of %s to %s", place, copy)
            for name, entry in files.items():
                _copy_file(storage, name, entry, partial / name)
            os.replace(partial, copy)
        except OSError as error:
            raise Outage(
                f"{FOLDER_VARIABLE}={folder}: takes no copy of the weights ({error.strerror}): "
                "make room, or name another folder"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return copy


def _copy_file(storage: Storage, name: str, entry: Mapping[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    size, digest = int(entry["size"]), hashlib.sha256()
    with target.open("wb") as file:
        for offset in range(0, size, _PART_BYTES):
            try:
                part = storage.read_range(name, offset, min(_PART_BYTES, size - offset))
            except FileNotFoundError:
                raise UserError(
                    f"{storage.uri}/{name}: is missing: fetch the weights again with "
                    "jobs/fetch_weights.py"
                ) from None
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != entry["sha256"]:
        raise UserError(
            f"{storage.uri}/{name}: is not the file of its listing: fetch the weights again with "
            "jobs/fetch_weights.py"
        )


def _private_folder() -> Path:
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given or Path(tempfile.gettempdir(), f"lseg-weights-{os.getuid()}"))
    make_private(folder, f"{FOLDER_VARIABLE}={folder}", "name another folder")
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _none_at(place: str) -> str:
    return (
        f"{PREFETCHED}={place}: holds no {LISTING}: must be a place that jobs/fetch_weights.py "
        "has filled: run it with --to and this place, or unset the variable to ask the hub"
    )
