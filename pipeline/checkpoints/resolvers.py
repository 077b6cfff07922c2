"""Where `LSeg.load` finds checkpoints that are not on this machine: S3, and MLflow's registry.

Importing this module puts its functions into `model.checkpoint.resolvers`; where the project is
installed, its entry points let `model` find them without an import. Only safetensors and text
are fetched (`USABLE`), so that no pickle from elsewhere ever gets here, into a temporary folder
that is removed when the process ends.
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

from model.checkpoint import resolvers, text_variables
from model.checkpoint_files import CONFIG, WEIGHTS, named_below
from model.errors import MissingCheckpoint, ModelError
from pipeline.checkpoints.files import USABLE
from pipeline.errors import UserError
from pipeline.ray_internals import artifact_repository
from pipeline.storage.open import open_storage
from pipeline.tracking.mlflow_run import patient
from pipeline.tracking.redaction import redact_text

PART_MIB = 32
"""Size of the parts in which files are read, so that a large one is never in memory whole."""

MAX_DEPTH = 3
"""Levels of folders below a registered model's root that are searched for the checkpoint."""


def fetch_s3(uri: str) -> Path:
    """Fetches a checkpoint folder of S3.

    Args:
        uri: `s3://bucket/folder`; the endpoint and the keys come from the `AWS_*` variables.

    Returns:
        A local folder with those of `USABLE` that there are.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        UserError: The bucket or the server cannot be reached.
    """
    storage = open_storage(uri)
    there = {entry.path: entry.size for entry in storage.files() if entry.path in USABLE}
    missing = [name for name in (CONFIG, WEIGHTS) if name not in there]
    if missing:
        raise MissingCheckpoint(
            f"{uri}: holds no {' and no '.join(missing)}: name the folder of a checkpoint"
            f"{named_below(storage.folders())}"
        )
    folder, part = _folder(uri), int(PART_MIB * 2**20)
    for name, size in there.items():
        with (folder / name).open("wb") as file:
            for offset in range(0, size, part):
                file.write(storage.read_range(name, offset, min(part, size - offset)))
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
    from mlflow import MlflowClient

    with _registry_errors(uri):
        source = MlflowClient().get_model_version_download_uri(*_version(uri))
        scheme = urlsplit(source).scheme
        if scheme == "s3":
            return fetch_s3(source)
        if scheme in ("", "file"):
            root = Path(unquote(urlsplit(source).path) if scheme else source)
            return root / _search(
                source, lambda path: [(i.name, i.is_dir()) for i in (root / path).iterdir()]
            )
        return _fetch_artifacts(uri, source)


def pinned(uri: str) -> str:
    """Resolves an address of the registry to the version that it means now.

    An alias may move while a job runs, and every process of a job must load the same weights.

    Args:
        uri: `models:/lseg@champion` becomes `models:/lseg/3`; other URIs stay as they are.

    Raises:
        ModelError: There is no such version or alias, or the registry does not answer.
    """
    if not uri.startswith("models:"):
        return uri
    with _registry_errors(uri):
        return "models:/{}/{}".format(*_version(uri))


def worker_runtime_env(uri: str) -> dict[str, Any] | None:
    """Makes the Ray runtime environment of a worker that loads a checkpoint as this process does.

    Args:
        uri: Address of the checkpoint.

    Returns:
        The variables that name the registry, for an address in it, and the text encoder that the
        user named (`model.checkpoint.followed`); None where there are none. See `mlflow_variables`.
    """
    variables = text_variables()
    if uri.startswith("models:"):
        variables |= mlflow_variables() | _without_secrets({"MLFLOW_REGISTRY_URI": _registry()})
    elif not variables:
        return None
    return {"env_vars": variables}


def mlflow_variables() -> dict[str, str]:
    """Collects the variables by which workers find MLflow, which Ray does not pass on by itself.

    Never a login: Ray writes a runtime environment into its logs and shows it in the dashboard.
    MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN, and an address
    that holds a login itself, must be in the environment of the nodes; the workers of a Ray that
    this process starts inherit its own.
    """
    name = "MLFLOW_TRACKING_URI"
    return _without_secrets({name: os.environ[name]} if name in os.environ else {})


def _without_secrets(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if redact_text(value) == value}


@contextmanager
def _registry_errors(uri: str) -> Iterator[None]:
    """Turns what the registry refuses into an error that names the registry."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, UserError) as error:
        registry = redact_text(_registry())
        raise ModelError(
            f"{uri}: could not be fetched from the registry {registry}: {redact_text(str(error))}: "
            "check name, version and alias, and MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI"
        ) from error


def _version(uri: str) -> tuple[str, str]:
    """Asks the registry for the name and number of the version that an address means."""
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
    """Fetches from a run, a logged model or a server's artifact store, through MLflow."""
    repository = artifact_repository(source)

    def names(path: str) -> list[tuple[str, bool]]:
        listed: Iterable[Any] = repository.list_artifacts(path or None) or []
        return [(posixpath.basename(info.path), info.is_dir) for info in listed]

    place = _search(source, names)
    there = {name for name, is_folder in names(place) if not is_folder and name in USABLE}
    folder = _folder(uri)
    for name in there:
        # MLflow keeps the folders above a file for some kinds of source and not for others.
        with tempfile.TemporaryDirectory(dir=folder) as download:
            with patient():
                fetched = repository.download_artifacts(posixpath.join(place, name), download)
            shutil.move(fetched, folder / name)
    return folder


def _search(source: str, names: Callable[[str], Iterable[tuple[str, bool]]]) -> str:
    """Finds the folder below a root that holds a checkpoint, nearest first; "" is the root.

    Args:
        source: The root, for the message.
        names: Lists a folder as (name, is_folder).
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
    raise MissingCheckpoint(
        f"{source}: holds no {WEIGHTS} with a {CONFIG}: must be a checkpoint of this project: "
        "register the checkpoint's folder"
    )


def _folder(uri: str) -> Path:
    """Makes an empty folder of this process; the same for one URI: loading twice needs no more."""
    folder = _process_folder() / hashlib.sha256(uri.encode()).hexdigest()[:16]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def forget(folder: Path) -> None:
    """Removes a folder that was fetched, once nothing reads it any more; any other is left."""
    if folder.is_relative_to(_process_folder()):
        shutil.rmtree(folder, ignore_errors=True)


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
