"""Asks MLflow, before a training or an evaluation starts, whether it would ever take the run."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.storage.places import ensure_writable_dir
from pipeline.tracking.config import TrackingConfig, server_uri
from pipeline.tracking.mlflow_run import MlflowRun, sqlite_path
from pipeline.tracking.records import RunIdentity
from pipeline.tracking.redaction import reason_of
from pipeline.tracking.refusals import MlflowRefused

logger = logging.getLogger(__name__)


def check_server(config: TrackingConfig) -> None:
    """Finds or creates the experiment, and refuses what waiting cannot cure.

    A server that does not answer is no reason to wait: what is logged is kept until it does.

    Raises:
        MlflowRefused: The experiment was deleted, a login or a permission is missing, no MLflow is
            at the address, or the name is not allowed.
        UserError: There is no usable tracking URI.
    """
    uri = server_uri(config)
    if (database := sqlite_path(uri)) is not None and not _is_used(uri, database):
        return
    identity = RunIdentity(experiment=config.experiment, run_name="", run_key="")
    try:
        MlflowRun(uri, identity, config.artifacts).find_experiment()
    except MlflowRefused:
        raise
    except Exception as error:
        logger.warning("MLflow does not answer; it is tried again later (%s)", reason_of(error))


def _is_used(uri: str, database: Path) -> bool:
    """Whether a database file exists, after what can be wrong about it; MLflow retries for hours.

    Importing MLflow takes seconds, which a new file does not need.
    """
    ensure_writable_dir("tracking.uri", uri, database.absolute().parent)
    if not database.exists() or not database.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as file:
            file.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.OperationalError:  # Locked, by a process that writes right now.
        return True
    except sqlite3.DatabaseError as error:
        raise MlflowRefused(
            f"tracking.uri={uri}: {database} is no SQLite database ({error}): give another file"
        ) from error
    return True
