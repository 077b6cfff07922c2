"""Where `LSeg.load` finds checkpoints that are not on this machine: S3, and MLflow's registry.

Importing this module puts its functions into `model.checkpoint.resolvers`; where the project is
installed, its entry points let `model` find them without an import. Only safetensors and text
are fetched (`FILES`), so that no pickle from elsewhere ever gets here, into a temporary folder that
goes with the process.
"""

import atexit
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from model.checkpoint import CONFIG, WEIGHTS, resolvers
from model.checkpoint import FILES as LOADED
from model.errors import ModelError
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.tracking.mlflow_run import patient
from pipeline.tracking.redaction import redact_text

FILES = (*LOADED, "provenance.json", "metrics.json")
"""What is fetched: all that a network is loaded from, and what tells how it was trained."""

PART_MIB = 32
"""Read at a time, so that a large file is never in memory whole."""

MAX_DEPTH = 3
"""Folders below a registered model's root that are searched for the checkpoint."""


def fetch_s3(uri: str) -> Path:
    """Fetches a checkpoint folder of S3.

    Args:
        uri: `s3://bucket/folder`; the endpoint and the keys come from the `AWS_*` variables.

    Returns:
        A local folder with those of `FILES` that there are.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        UserError: The bucket or the server cannot be reached.
    """
    storage = open_storage(uri)
    there = {entry.path for entry in storage.list() if entry.path in FILES}
    _require(uri, there)
    folder = _folder(uri)
    for name in there:
        _download(storage, name, folder / name)
    return folder


def fetch_registered(uri: str) -> Path:
    """Fetches the checkpoint of a version in MLflow's model registry.

    Args:
        uri: `models:/name@alias`, `models:/name/3` or `models:/name/latest`; the registry is that
            of `mlflow.set_registry_uri`, or of `MLFLOW_REGISTRY_URI` or `MLFLOW_TRACKING_URI`.

    Returns:
        As `fetch_s3`. The checkpoint may lie in a folder below the version's root.

    Raises:
        FileNotFoundError: The version holds no checkpoint.
        ModelError: There is no such model, version or alias, or the registry does not answer.
    """
    with _told(uri):
        source = _source(uri)
        scheme = urlsplit(source).scheme
        if scheme == "s3":
            return fetch_s3(source)
        if scheme in ("", "file"):
            folder = _search(source, lambda path: _local_names(source, path))
            return _local_root(source) / folder
        return _fetch_artifacts(uri, source)


def pinned(uri: str) -> str:
    """The URI of what an address of the registry means now; any other as it is.

    An alias may move while a job runs, and every process of a job must load the same weights.

    Args:
        uri: `models:/lseg@champion` becomes `models:/lseg/3`.

    Raises:
        ModelError: As `fetch_registered`.
    """
    if not uri.startswith("models:"):
        return uri
    with _told(uri):
        return "models:/{}/{}".format(*_version(uri))


def worker_runtime_env(uri: str) -> dict[str, Any] | None:
    """The Ray runtime environment of a worker that loads a checkpoint as this process does.

    Args:
        uri: Of the checkpoint.

    Returns:
        For an address in the registry: which one; else None. See `mlflow_variables`.
    """
    if not uri.startswith("models:"):
        return None
    return {"env_vars": mlflow_variables() | _without_secrets({"MLFLOW_REGISTRY_URI": _registry()})}


def mlflow_variables() -> dict[str, str]:
    """Variables by which workers find MLflow, and which Ray does not pass on by itself.

    Never a login: Ray writes a runtime environment into its logs and shows it in the dashboard.
    MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN, and an address
    that holds a login itself, must be in the environment of the nodes; the workers of a Ray that
    this process starts inherit its own.
    """
    names = ("MLFLOW_TRACKING_URI",)
    return _without_secrets({name: os.environ[name] for name in names if name in os.environ})


def _without_secrets(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if redact_text(value) == value}


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """What the registry refuses, as an error that says where it was looked for."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, UserError) as error:
        registry = redact_text(_registry())
        raise ModelError(
            f"{uri}: cannot be had from the registry {registry}: {redact_text(str(error))}: check "
            "name, version and alias, and MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI"
        ) from error


def _source(uri: str) -> str:
    """Where the registry says that a version's files lie."""
    from mlflow import MlflowClient

    return MlflowClient().get_model_version_download_uri(*_version(uri))


def _version(uri: str) -> tuple[str, str]:
    """Name and number of the version that an address means, which exists."""
    from mlflow import MlflowClient

    client = MlflowClient()
    name = unquote(uri.removeprefix("models:").lstrip("/"))
    if "@" in name:
        name, _, alias = name.rpartition("@")
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.rpartition("/")
        if not name or not (number.isdecimal() or number == "latest"):
            raise ModelError(
                f"{uri}: must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest: "
                "correct the URI"
            )
        if number == "latest":
            found = client.search_model_versions(f"name={name!r}")
            if not found:
                raise ModelError(f"{uri}: the registry has no version of {name}: check the name")
            number = str(max(int(version.version) for version in found))
        version = client.get_model_version(name, number)
    return name, str(version.version)


def _fetch_artifacts(uri: str, source: str) -> Path:
    """From a run, a logged model or a server's artifact store, through MLflow."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(source)

    def names(path: str) -> list[tuple[str, bool]]:
        listed: Iterable[Any] = repository.list_artifacts(path or None) or []
        return [(posixpath.basename(info.path), info.is_dir) for info in listed]

    place = _search(source, names)
    there = {name for name, is_folder in names(place) if not is_folder and name in FILES}
    folder = _folder(uri)
    for name in there:
        # MLflow keeps the folders above a file for some kinds of source and not for others.
        with tempfile.TemporaryDirectory(dir=folder) as download:
            with patient():
                fetched = repository.download_artifacts(posixpath.join(place, name), download)
            shutil.move(fetched, folder / name)
    return folder


def _search(source: str, names: Callable[[str], Iterable[tuple[str, bool]]]) -> str:
    """The folder below a root that holds a checkpoint, nearest first; "" is the root itself.

    Args:
        source: The root, for the message.
        names: Gives (name, is_folder) of what is in a folder.
    """
    level = [""]
    for _ in range(MAX_DEPTH + 1):
        below = []
        for path in level:
            content = list(names(path))
            if {CONFIG, WEIGHTS} <= {name for name, is_folder in content if not is_folder}:
                return path
            below += [posixpath.join(path, name) for name, is_folder in content if is_folder]
        level = sorted(below)
    raise FileNotFoundError(
        f"{source}: holds no {WEIGHTS} with a {CONFIG}: must be a checkpoint of this project: "
        "register the checkpoint's folder"
    )


def _local_root(source: str) -> Path:
    parts = urlsplit(source)
    return Path(unquote(parts.path) if parts.scheme == "file" else source)


def _local_names(source: str, path: str) -> list[tuple[str, bool]]:
    folder = _local_root(source) / path
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder on this machine")
    return [(item.name, item.is_dir()) for item in folder.iterdir()]


def _download(storage: Storage, name: str, target: Path) -> None:
    size, part = storage.size(name), int(PART_MIB * 2**20)
    with target.open("wb") as file:
        for offset in range(0, size, part):
            file.write(storage.read_range(name, offset, min(part, size - offset)))


def _require(uri: str, there: set[str]) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{uri}: holds no {' and no '.join(missing)}: name the folder of a checkpoint"
        )


def _folder(uri: str) -> Path:
    """An empty folder of this process; the same for the same URI: loading twice needs no more."""
    folder = _process_folder() / hashlib.sha256(uri.encode()).hexdigest()[:16]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@cache
def _process_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="lseg-fetched-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _registry() -> str:
    import mlflow

    return mlflow.get_registry_uri()


resolvers.setdefault("s3", fetch_s3)
resolvers.setdefault("models", fetch_registered)
