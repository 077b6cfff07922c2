"""Where runs are recorded: the `tracking` part of a configuration, and the MLflow URI it means."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UserError, did_you_mean, printable
from pipeline.tracking.limits import MAX_EXPERIMENT_CHARS
from pipeline.tracking.redaction import redact_text

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str = ""
    """MLflow tracking URI: `http://host:5000`, `sqlite:////absolute/mlflow.db`; empty: the
    environment's MLFLOW_TRACKING_URI, else a sqlite file in the run's storage. Credentials belong
    in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the nodes of a cluster too."""
    experiment: str = "lseg"
    """MLflow experiment; created if missing."""
    queue_size: int = 10_000
    """Most records kept in memory while the local disk takes none; beyond that the oldest are lost.
    Otherwise every record is in a local file at once."""
    artifacts: str = ""
    """Root for the artifacts of a new experiment (`s3://...`, `file:///...`); empty: the server's
    own, or a folder beside the sqlite file."""

    def __post_init__(self):
        if not self.experiment.strip():
            raise UserError("tracking.experiment='': must be a name: write for example 'lseg'")
        if len(self.experiment) > MAX_EXPERIMENT_CHARS:
            raise UserError(
                f"tracking.experiment={self.experiment[:40]}...: must have at most "
                f"{MAX_EXPERIMENT_CHARS} characters, and has {len(self.experiment)}: MLflow takes "
                "no longer name; shorten it"
            )
        if self.experiment != printable(self.experiment):
            raise UserError(
                f"tracking.experiment={printable(self.experiment)}: must hold no line break and no "
                "other invisible character: write a plain name"
            )
        if self.queue_size < 1:
            raise UserError(
                f"tracking.queue_size={self.queue_size}: must be >= 1: the default is 10000"
            )
        if not self.uri:
            return
        if redact_text(self.uri) != self.uri:
            raise UserError(
                f"tracking.uri={redact_text(self.uri)}: must hold no credentials: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        _check_scheme("tracking.uri", self.uri, self.artifacts)

    def resolved(self, storage: Path) -> "TrackingConfig":
        """Fills in an empty or relative `uri`, so that it means the same in every process.

        Args:
            storage: Folder for the sqlite file if neither `uri` nor MLFLOW_TRACKING_URI is set.

        Returns:
            A config with a complete `uri`; still an empty one if MLFLOW_TRACKING_URI holds
            credentials, which the workers must then get through their environment.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if redact_text(uri) != uri:
            return self
        if not uri:
            uri = f"sqlite:///{storage.resolve() / 'mlflow.db'}"
        elif uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            uri = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
        return replace(self, uri=uri)


def _check_scheme(where: str, uri: str, artifacts: str) -> None:
    """Refuses what MLflow cannot write to, or would write to the current folder."""
    scheme = uri.split(":", 1)[0].split("+")[0]
    if ":" not in uri or scheme not in _SCHEMES:
        allowed = ", ".join(f"{name}:" for name in _SCHEMES[:4])
        raise UserError(
            f"{where}={redact_text(uri)}: must start with one of {allowed} ...: write "
            f"sqlite:////absolute/mlflow.db for a file{did_you_mean(scheme, _SCHEMES)}"
        )
    if scheme in ("postgresql", "mysql", "mssql") and not artifacts:
        raise UserError(
            f"{where}={redact_text(uri)}: a database has no place for artifacts: set "
            "tracking.artifacts to s3://... or a shared folder, or use an MLflow server"
        )


def server_uri(config: TrackingConfig) -> str:
    """The URI to talk to, which may hold credentials of the environment."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UserError(
            "tracking.uri='': must be set where MLFLOW_TRACKING_URI is not: write "
            "http://host:5000 or sqlite:////absolute/mlflow.db"
        )
    if not config.uri:
        _check_scheme("MLFLOW_TRACKING_URI", uri, config.artifacts)
    return uri
