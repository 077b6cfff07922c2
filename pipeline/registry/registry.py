"""The model registry: versions of one MLflow registered model, and which of them is in service.

A version is a pyfunc model (`pipeline.inference.served_model`) that holds the checkpoint folder, so
that `models:/NAME/3` and `models:/NAME@champion` serve, and are evaluated and trained from. What
led to it is in its tags. Two aliases have a meaning: `candidate`, under trial, and `champion`, in
service. Every call blocks on the server; nothing is cached.
"""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoint import local
from model.errors import ModelError
from pipeline.checkpoints import resolvers  # noqa: F401  # models:/
from pipeline.checkpoints.files import (
    CONTENT_TAG,
    WEIGHTS_TAG,
    checkpoint_fingerprint,
    content_fingerprint,
    fingerprints,
)
from pipeline.checkpoints.provenance import open_checkpoint
from pipeline.errors import UserError
from pipeline.registry.config import RegistryConfig
from pipeline.registry.facts import described, description, links, tags_for_mlflow
from pipeline.tracking.limits import name_of_metric, plain_name_of_metric
from pipeline.tracking.mlflow_run import (
    MlflowUnavailable,
    client_of,
    is_unavailable,
    patient,
    prepare_environment,
)
from pipeline.tracking.redaction import redact_text
from pipeline.tracking.run_page import CHECKPOINT_TAG, EXTERNAL_TAG, models_of, outputs_of

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
CHAMPION = "champion"

REPLACED_TAG = "replaced"
"""The version that carried the alias `champion` before this one was given it."""
STATE_TAG = "retrain.state"
"""Tag of the registered model: where its re-training keeps locks, `RUN_STORAGE/retrain/NAME`."""
ROLLED_BACK_TAG = "rolled_back"
"""When this version lost the alias `champion` by `Registry.roll_back`, in UTC."""

_DESCRIPTION = (
    "LSeg: segments images with labels given at call time. The alias `champion` is in service, "
    "`candidate` under trial."
)


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry."""

    name: str
    version: str
    run_id: str
    """MLflow run that made it."""
    source: str
    """Where its files are, as the registry says."""
    tags: dict[str, str]
    metrics: dict[str, float]
    """Metrics that were given when it was registered; the last value of each."""
    aliases: tuple[str, ...] = ()
    created_ms: int = 0
    """When it was made, in milliseconds since the epoch."""

    @property
    def uri(self) -> str:
        """What `LSeg.load`, `--checkpoint` and MLflow understand: `models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the shards that the model was trained on, by dataset."""
        return fingerprints(self.tags)


class Registry:
    """A registered model on one MLflow server.

    Using one sets the URIs of tracking and registry of this process and of those that it starts
    (but not of Ray workers on other machines), whatever the environment says, so that `models:/`
    means this server everywhere in it. All methods raise `UserError` where the server refuses, and
    `MlflowUnavailable` where it does not answer.

    Args:
        tracking_uri: MLflow's, complete (`tracking_config.server_uri`); the registry is there too.
        name: Name of the registered model, which need not exist yet.
    """

    def __init__(self, tracking_uri: str, name: str = RegistryConfig.name) -> None:
        prepare_environment()
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.tracking_uri, self.name = tracking_uri, name
        self._set_process()
        self._client = client_of(tracking_uri)

    def register(
        self,
        checkpoint: str | Path,
        *,
        run_id: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Logs a checkpoint as a pyfunc model of a run and makes it a version.

        The version comes last, so one that exists is whole. The same weights with the same settings
        and labels, of the same run, are registered once: a second call gives the first one's
        version, with metrics and tags of both.

        Args:
            checkpoint: A folder, or a URI that `model.checkpoint.local` fetches.
            run_id: MLflow run that it belongs to, on this server.
            metrics: Linked with the model and the run, at the checkpoint's step.
            tags: Tags of the version, beside those of the checkpoint's provenance; secrets are
                left out.

        Raises:
            UserError: There is no checkpoint, or no such run.
            ModelError: The checkpoint cannot be fetched, or is damaged.
        """
        from mlflow.entities import LoggedModelOutput

        from pipeline.inference.served_model import check_checkpoint, save_served

        folder, provenance = open_checkpoint(str(checkpoint))
        check_checkpoint(folder)
        digests = {
            WEIGHTS_TAG: checkpoint_fingerprint(folder),
            CONTENT_TAG: content_fingerprint(folder),
        }
        given = tags_for_mlflow({**described(provenance), **(tags or {}), **digests})
        with self._server_errors():
            run = self._client.get_run(run_id)
        there = self.find(run_id=run_id, tags=digests) or self._older(run_id, digests)
        if there is not None:
            return self._extend(there, metrics or {}, given, provenance.step)
        given.setdefault(CHECKPOINT_TAG, redact_text(str(checkpoint)))
        with tempfile.TemporaryDirectory(prefix="lseg-register-") as scratch, self._server_errors():
            model = self._logged_model(run, given)
            save_served(folder, Path(scratch) / "model", logged=model, run_id=run_id)
            with patient():
                self._client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
            self._have_files(model)
            if model.model_id not in [output.model_id for output in outputs_of(run)]:
                output = LoggedModelOutput(model.model_id, provenance.step)
                self._client.log_outputs(run_id, [output])
            self._log_metrics(run_id, model.model_id, metrics or {}, provenance.step)
            self._make_model()
            made = self._client.create_model_version(
                self.name,
                source=f"models:/{model.model_id}",
                run_id=run_id,
                tags=given,
                description=description(
                    provenance, metrics or {}, links(run, model.model_id), given
                ),
                model_id=model.model_id,
            )
        # Where it came from: what was given may be a copy on this machine.
        place = given[CHECKPOINT_TAG]
        logger.info("registered %s as models:/%s/%s", place, self.name, made.version)
        return self.get(str(made.version))

    def get(self, version: str) -> ModelVersion:
        """Returns a version by its number.

        Raises:
            UserError: There is none.
        """
        with self._server_errors():
            found = self._client.get_model_version(self.name, version)
            return self._version(found, found.aliases)

    def find(
        self, *, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> ModelVersion | None:
        """Returns the newest version of a run, with all of some tags, or both; None without one."""
        for found in self.versions():
            if run_id in (None, found.run_id) and (tags or {}).items() <= found.tags.items():
                return found
        return None

    def versions(self) -> list[ModelVersion]:
        """All versions, the newest first; none where the registered model does not exist."""
        aliases = self.aliases()
        found: list[Any] = []
        token: str | None = None
        with self._server_errors():
            while token is None or token:
                page = self._client.search_model_versions(f"name={self.name!r}", page_token=token)
                found += page
                token = page.token or ""
            versions = [
                self._version(one, [name for name, of in aliases.items() if of == str(one.version)])
                for one in found
            ]
        return sorted(versions, key=lambda version: int(version.version), reverse=True)

    def aliases(self) -> dict[str, str]:
        """Version by alias; empty where the registered model does not exist."""
        model = self._or_none(lambda: self._client.get_registered_model(self.name))
        return {} if model is None else {a: str(version) for a, version in model.aliases.items()}

    def alias(self, name: str) -> ModelVersion | None:
        """The version that carries an alias; None where none does."""
        version = self.aliases().get(name)
        return None if version is None else self.get(version)

    def set_alias(self, name: str, version: ModelVersion | str) -> None:
        """Gives an alias to a version, and takes it from the one that had it, in one step.

        A version that becomes `champion` remembers which it replaced, for `roll_back`.
        """
        number = _number(version)
        self.get(number)  # Raises where there is none, before anything is changed.
        before = self.aliases().get(name) if name == CHAMPION else None
        if before is not None and before != number:
            self.set_tags(number, {REPLACED_TAG: before})
        with self._server_errors():
            self._client.set_registered_model_alias(self.name, name, number)

    def remove_alias(self, name: str) -> None:
        """Takes an alias away, if any version has it."""
        if name in self.aliases():
            with self._server_errors():
                self._client.delete_registered_model_alias(self.name, name)

    def roll_back(self) -> ModelVersion:
        """Puts the version in service that the champion replaced; returns it.

        Raises:
            UserError: There is no champion, or it replaced none.
        """
        champion = self.alias(CHAMPION)
        before = champion and champion.tags.get(REPLACED_TAG)
        if champion is None or not before:
            raise UserError(
                f"registry.name={self.name}: has no {CHAMPION} that replaced another: name the "
                "version that is to be in service"
            )
        back = self.get(before)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.set_tags(champion, {ROLLED_BACK_TAG: now})
        with self._server_errors():
            self._client.set_registered_model_alias(self.name, CHAMPION, back.version)
        # Nothing is asked any more: it is done, and no answer that fails may say otherwise.
        return replace(back, aliases=tuple(sorted({*back.aliases, CHAMPION})))

    def knows_run(self, run_id: str) -> bool:
        """Whether the server has this run, and it is not deleted."""
        run = self._or_none(lambda: self._client.get_run(run_id), "INVALID_PARAMETER_VALUE")
        return run is not None and run.info.lifecycle_stage == "active"

    def set_tags(self, version: ModelVersion | str, tags: Mapping[str, str]) -> None:
        """Sets tags of a version; secrets are left out."""
        number = _number(version)
        with self._server_errors():
            for key, value in tags_for_mlflow(tags).items():
                self._client.set_model_version_tag(self.name, number, key, value)

    def state_folder(self) -> str:
        """Where the locks of this model's re-training are; empty where it was never re-trained."""
        model = self._or_none(lambda: self._client.get_registered_model(self.name))
        return "" if model is None else model.tags.get(STATE_TAG, "")

    def set_state_folder(self, uri: str) -> None:
        """Remembers `state_folder`; the registered model must exist."""
        with self._server_errors():
            self._client.set_registered_model_tag(self.name, STATE_TAG, uri)

    def checkpoint(self, version: ModelVersion | str) -> str:
        """The URI of a version that `LSeg.load` and `--checkpoint` understand.

        A process on another machine resolves it by its own MLFLOW_TRACKING_URI.
        """
        return f"models:/{self.name}/{_number(version)}"

    def _logged_model(self, run: Any, tags: Mapping[str, str]) -> Any:
        """The logged model that becomes a version: the one that the training made, or a new one."""
        for model in models_of(self._client, run):
            if EXTERNAL_TAG in model.tags and model.tags.get(CONTENT_TAG) == tags[CONTENT_TAG]:
                self._client.set_logged_model_tags(model.model_id, dict(tags))
                return model
        return self._client.create_logged_model(
            run.info.experiment_id,
            name=self.name,
            source_run_id=run.info.run_id,
            tags=dict(tags),
            params={CHECKPOINT_TAG: tags[CHECKPOINT_TAG]},
            model_type="segmentation",
        )

    def _have_files(self, model: Any) -> None:
        """Marks a logged model as one whose files are with MLflow, all of them."""
        from mlflow.entities import LoggedModelStatus

        if model.status != LoggedModelStatus.READY:
            self._client.finalize_logged_model(model.model_id, "READY")
        if EXTERNAL_TAG in model.tags:
            self._client.delete_logged_model_tag(model.model_id, EXTERNAL_TAG)

    def _older(self, run_id: str, digests: Mapping[str, str]) -> ModelVersion | None:
        """A version that was made before versions said what their labels are, if it is the same.

        Its files are fetched and compared, once: `_extend` then gives it the tag.
        """
        for found in self.versions():
            same_weights = found.tags.get(WEIGHTS_TAG) == digests[WEIGHTS_TAG]
            if found.run_id != run_id or not same_weights or CONTENT_TAG in found.tags:
                continue
            try:
                content = content_fingerprint(local(found.uri))
            except (UserError, ModelError, OSError) as error:
                logger.warning(
                    "%s has these weights, and its labels are not known, since its files cannot be "
                    "fetched: a new version is made (%s)",
                    found.uri,
                    redact_text(str(error)),
                )
                continue
            if content == digests[CONTENT_TAG]:
                return found
            logger.info("%s has these weights and other labels: a new version is made", found.uri)
        return None

    def _extend(
        self,
        version: ModelVersion,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        step: int,
    ) -> ModelVersion:
        with self._server_errors():
            self._log_metrics(version.run_id, _logged_model_id(version.source), metrics, step)
        self.set_tags(version, tags)
        logger.info("%s is registered already: as %s", tags[WEIGHTS_TAG], version.uri)
        return self.get(version.version)

    def _log_metrics(
        self, run_id: str, model_id: str, metrics: Mapping[str, float], step: int
    ) -> None:
        """Logs metrics of a run that a logged model shows too."""
        from mlflow.entities import Metric

        now_ms, model = int(time.time() * 1000), model_id or None
        values = [
            Metric(name_of_metric(key), float(value), now_ms, step, model_id=model)
            for key, value in metrics.items()
        ]
        if values:
            self._client.log_batch(run_id, metrics=values)

    def _make_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self.name, description=_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version(self, version: Any, aliases: Iterable[str]) -> ModelVersion:
        return ModelVersion(
            name=version.name,
            version=str(version.version),
            run_id=version.run_id or "",
            source=version.source,
            tags=dict(version.tags),
            metrics=self._metrics(version.source),
            aliases=tuple(sorted(aliases)),
            created_ms=int(version.creation_timestamp),
        )

    def _metrics(self, source: str) -> dict[str, float]:
        """Metrics of a version's logged model; none where it has none, or it was deleted."""
        model_id = _logged_model_id(source)
        logged = model_id and self._or_none(lambda: self._client.get_logged_model(model_id))
        # In the order of their times, so that the last one stays.
        ordered = sorted((logged and logged.metrics) or [], key=lambda metric: metric.timestamp)
        return {plain_name_of_metric(metric.key): float(metric.value) for metric in ordered}

    def _set_process(self) -> None:
        """MLflow's own code resolves `models:/` by what the process is set to, not by a client."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        if mlflow.get_registry_uri() != self.tracking_uri:  # MLFLOW_REGISTRY_URI, or another one's.
            mlflow.set_registry_uri(self.tracking_uri)

    def _or_none(self, call: Callable[[], Any], *codes: str) -> Any:
        """Returns what a call returns, or None where the server does not know what it is about.

        `codes` are further error codes of MLflow by which the server says so.
        """
        from mlflow.exceptions import MlflowException

        with self._server_errors():
            try:
                return call()
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", *codes):
                    return None
                raise

    @contextmanager
    def _server_errors(self) -> Iterator[None]:
        """Turns what the server refuses, or its silence, into a user's error."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError

        self._set_process()
        try:
            yield
        except (MlflowException, OperationalError) as error:
            reason = redact_text(" ".join(str(error).split()))
            raise (MlflowUnavailable if is_unavailable(error) else UserError)(
                f"registry {redact_text(self.tracking_uri)}, model {self.name}: {reason}: check "
                "the name, the version and tracking.uri, and that the server answers"
            ) from error


def _number(version: ModelVersion | str) -> str:
    return version.version if isinstance(version, ModelVersion) else str(version)


def _logged_model_id(source: str) -> str:
    """Id of the logged model that is a version's source; empty where the source is another."""
    found = re.fullmatch(r"models:/+(m-\w+)", source or "")
    return found[1] if found else ""
