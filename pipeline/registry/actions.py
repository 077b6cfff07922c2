"""The registry by hand: register, promote, roll back, list; what `jobs/registry.py` does."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pipeline.checkpoints.environment import source_fingerprint
from pipeline.checkpoints.files import checkpoint_fingerprint
from pipeline.checkpoints.origin import tags_of_this_process
from pipeline.checkpoints.provenance import open_checkpoint
from pipeline.errors import UserError
from pipeline.registry.config import RegistryJobConfig
from pipeline.registry.locks import CHAMPION_LOCK, locked
from pipeline.registry.registry import CHAMPION, WEIGHTS_TAG, ModelVersion, Registry
from pipeline.storage.open import open_storage
from pipeline.tracking.config import server_uri
from pipeline.tracking.mlflow_run import MlflowRun
from pipeline.tracking.records import Record, RunIdentity, now_ms


def change_registry(config: RegistryJobConfig) -> list[ModelVersion]:
    """Changes or lists the versions of a registered model, as `config.action` says.

    Returns the version that was registered or put in service; for `list` all; for `remove_alias`
    none.

    Raises:
        UserError: The server refuses, or there is no such checkpoint or version.
        MlflowUnavailable: The server does not answer.
        RetrainLocked: A re-training is just changing the champion.
        ModelError: The checkpoint cannot be fetched.
    """
    registry = Registry(server_uri(config.tracking), config.registry.name)
    if config.action == "list":
        return registry.versions()
    if config.action == "register":
        return [_register(registry, config)]
    alias = config.alias or CHAMPION
    with _alias_lock(registry, config, alias):
        if config.action == "promote":
            version = _named(registry, config.version)
            registry.set_alias(alias, version)
            return [registry.get(version.version)]
        if config.action == "roll_back":
            return [registry.roll_back()]
        registry.remove_alias(alias)
    return []


@contextmanager
def _alias_lock(registry: Registry, config: RegistryJobConfig, alias: str) -> Iterator[None]:
    """Takes the lock that a re-training of this model holds while it changes the champion.

    Other aliases have none.
    """
    place = registry.state_folder() if alias == CHAMPION else ""
    if not place:  # Nothing re-trains it.
        yield
        return
    if "://" not in place and not Path(place).is_dir():
        raise UserError(
            f"registry.name={config.registry.name}: is re-trained with its locks in {place}, which "
            "is not on this machine: do it there, or set the alias in the MLflow UI while no "
            "re-training is at work"
        )
    what = f"the champion of {config.registry.name}"
    with locked(open_storage(place), CHAMPION_LOCK, config.lock, what) as lease:
        lease.check()
        yield


def describe(version: ModelVersion) -> str:
    """Describes a version in one line."""
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.created_ms / 1000))
    words = [version.uri, ",".join(f"@{alias}" for alias in version.aliases) or "-", f"{made} UTC"]
    words += [f"step {version.tags.get('step', '?')}", f"run {version.run_id or '-'}"]
    if "val/miou" in version.metrics:
        words.append(f"val/miou {version.metrics['val/miou']:.4f}")
    if sources := version.tags.get("source_fingerprint"):
        same = "those of this checkout" if sources == _sources_here() else "others"
        words.append(f"sources {sources} ({same})")
    return "  ".join(words)


@functools.cache
def _sources_here() -> str:
    return source_fingerprint()


def _register(registry: Registry, config: RegistryJobConfig) -> ModelVersion:
    folder, provenance = open_checkpoint(config.checkpoint)
    run_id = config.run_id or _known_run(registry, folder, provenance.tags)
    version = registry.register(
        # Fetched once; the tags say where from.
        folder,
        run_id=run_id or _new_run(config),
        metrics={
            key: float(value)
            for key, value in provenance.metrics.items()
            if key.startswith("val/") and isinstance(value, int | float)
        },
        tags={"checkpoint": config.checkpoint, **config.tags},
    )
    if config.alias:
        with _alias_lock(registry, config, config.alias):
            registry.set_alias(config.alias, version)
    return registry.get(version.version)


def _known_run(registry: Registry, folder: Path, tags: dict[str, str]) -> str:
    """Finds the run of these weights' version, else the run that trained them, else none."""
    there = registry.find(tags={WEIGHTS_TAG: checkpoint_fingerprint(folder)})
    if there is not None:
        return there.run_id
    trained = tags.get("mlflow_run_id", "")
    return trained if trained and registry.knows_run(trained) else ""


def _new_run(config: RegistryJobConfig) -> str:
    identity = RunIdentity(
        experiment=config.tracking.experiment,
        run_name=f"register {Path(config.checkpoint).name}",
        run_key=uuid4().hex,
        run_id="",
        parent_run_id="",
    )
    run = MlflowRun(server_uri(config.tracking), identity, artifacts=config.tracking.artifacts)
    run.open(resume=False)
    run.offer([Record(kind="tags", time_ms=now_ms(), values=tags_of_this_process())])
    run.end("FINISHED", now_ms())
    return run.identity.run_id


def _named(registry: Registry, version: str) -> ModelVersion:
    if not version.startswith("@"):
        return registry.get(version)
    found = registry.alias(version[1:])
    if found is None:
        raise UserError(f"version={version}: no version has this alias: see `list`")
    return found
