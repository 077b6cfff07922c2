"""One MLflow run as a place to send records to: finds or creates it, sends in large calls.

Everything here blocks on the network or the disk; a training calls it from the sender's thread,
`jobs/track.py` directly. MLflow is imported on first use: it takes seconds.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.tracking.experiment import describe
from pipeline.tracking.limits import (
    MAX_RUN_TAG_CHARS,
    folder_for,
    name_for_mlflow,
    name_of_metric,
)
from pipeline.tracking.records import Record, RunIdentity
from pipeline.tracking.redaction import reason_of, redact_text
from pipeline.tracking.refusals import deleted, refusal_of, status_of
from pipeline.tracking.run_page import SENDERS

RUN_KEY_TAG = "lseg.run_key"
CHANGED_TAG = "lseg.changed_on_resume."

_SETTLE_S = 1.0
_PAUSES_S = (1.0, 4.0)
"""Between the tries of what has only one chance, where a server that works fails over it."""
_APART = ("artifact", "text", "picture", "table", "inputs", "model")
"""Kinds that a server may fail with for good while it takes metrics.

Its artifact store may have no room or give no rights. They may not hold back all that follows.
"""
# The answer that says "never", as opposed to "not now".
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE")

# MLflow's own defaults block a call to a dead server for minutes. It does not retry here at all:
# a retried POST to a frozen server would create a second run, and the sender retries anyway.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class MlflowUnavailable(UserError):
    """MLflow does not answer now, or says that it cannot: the same may succeed later."""

    exit_code = 69
    """EX_UNAVAILABLE of sysexits.h; nothing is wrong with settings and data."""


def prepare_environment() -> None:
    """Bounds MLflow's waiting in this process; what the user has set stays."""
    for key, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@contextmanager
def patient(timeout_s: int = 600) -> Iterator[None]:
    """Lets MLflow wait longer for an answer: a server that stores a large file answers late."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(timeout_s, int(before or 0)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def is_refusal(error: BaseException) -> bool:
    """Returns whether sending the same again can never succeed."""
    code = getattr(error, "error_code", None)
    return code in _REFUSALS or isinstance(error, FileNotFoundError)


def is_unavailable(error: BaseException) -> bool:
    """Returns whether an error of MLflow, or its cause, means that MLflow does not answer."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    cause: BaseException | None = error
    while cause is not None:
        # MLflow gives 500 to all that it got no answer for, too.
        if isinstance(cause, MlflowException) and cause.get_http_status_code() >= 500:
            return True
        if isinstance(cause, RequestException | OperationalError):
            return True
        cause = cause.__cause__
    return False


def sqlite_path(uri: str) -> Path | None:
    """Returns the database file of a sqlite tracking URI, None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").split("?")[0])


def make_private(uri: str) -> None:
    """Makes the file of a sqlite tracking URI, if it is new, such that its owner alone reads it."""
    database = sqlite_path(uri)
    if database is None:
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def client_of(uri: str) -> Any:
    """Makes MLflow's client of a tracking URI, whose registry is there too.

    MLflow makes the tables of a new sqlite file in whatever process finds none: of two that do so
    at once one fails. So they take turns.
    """
    prepare_environment()
    from mlflow import MlflowClient

    make_private(uri)
    with _turn(sqlite_path(uri)):
        return MlflowClient(uri, registry_uri=uri)


@contextmanager
def _turn(database: Path | None) -> Iterator[None]:
    with ExitStack() as stack:
        if database is not None:
            path = database.with_name(f".{database.name}.lock")
            # A folder that is only read here, whose file has its tables, or that takes no locks.
            with suppress(OSError, NotImplementedError):
                stack.enter_context(FileLock(path, fallback_to_soft=False))
        yield


class MlflowRun:
    """A run on one server. Not thread-safe; `open` first."""

    def __init__(
        self, uri: str, identity: RunIdentity, artifacts: str = "", is_guest: bool = False
    ) -> None:
        """Prepares without any call.

        Args:
            uri: Tracking URI, complete.
            identity: The run; its `run_id` is tried first, then its `run_key`.
            artifacts: Root for the artifacts of a new experiment; empty: the server's choice, or
                a folder beside the sqlite file.
            is_guest: Whether the run is another process's, whose status stays what it is.
        """
        self.uri = uri
        self.identity = identity
        self.experiment_id = ""
        self.artifacts = artifacts
        self.is_guest = is_guest
        self._client: Any = None
        self._params: dict[str, str] = {}
        self._maybe_created = self._created = False

    def open(self, *, resume: bool) -> None:
        """Finds the run, or creates it. Call again after any exception.

        Args:
            resume: Mark an existing run as running again.

        Raises:
            MlflowRefused: MLflow answers, and would never take the run.
            Exception: Whatever else MLflow raises: it does not answer.
        """
        with self._explained():
            self._open(resume)

    def find_experiment(self) -> str:
        """Finds the experiment, or creates it; returns its id. It raises what `open` does."""
        with self._explained():
            return self._experiment()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            refusal = refusal_of(error, self.uri, self.identity.experiment)
            if refusal is None or refusal is error:
                raise
            raise refusal from error

    def _open(self, resume: bool) -> None:
        client = self._connect()
        self.experiment_id = self.experiment_id or self._experiment()
        run = self._find()
        if run is None:
            tags = {RUN_KEY_TAG: self.identity.run_key, "mlflow.source.type": "JOB"}
            if self.identity.parent_run_id:
                tags["mlflow.parentRunId"] = self.identity.parent_run_id
            self._maybe_created = True
            run = client.create_run(self.experiment_id, tags=tags, run_name=self.identity.run_name)
            self.is_guest = False  # Nobody else ends a run that was not there.
            self._created = True
        elif resume and not self.is_guest and run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        self._maybe_created = False
        self._params = dict(run.data.params)
        self.experiment_id = run.info.experiment_id
        self.identity = replace(self.identity, run_id=run.info.run_id)

    def _connect(self) -> Any:
        if self._client is None:
            for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            self._client = client_of(self.uri)
        return self._client

    def _experiment(self) -> str:
        client, name = self._connect(), self.identity.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise deleted(name, found.experiment_id, self.uri)
            describe(client, found.experiment_id, found.tags)
            return found.experiment_id
        location = self.artifacts or None
        database = sqlite_path(self.uri)
        if location is None and database is not None:
            # Without a location MLflow would write to ./mlruns of whatever folder this is.
            folder = database.resolve().parent / "mlartifacts" / folder_for(name)
            location = folder.as_uri()
        try:
            made = client.create_experiment(name, artifact_location=location)
        except Exception:
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id  # another process was quicker
        describe(client, made, {})
        return made

    def _find(self) -> Any:
        """Looks for the run by id, then by key; the oldest if a retry made two."""
        client = self._connect()
        if self.identity.run_id:
            try:
                run = client.get_run(self.identity.run_id)
                if run.info.lifecycle_stage == "active":
                    return run
            except Exception as error:
                code = getattr(error, "error_code", None)
                if code != "RESOURCE_DOES_NOT_EXIST" and not is_refusal(error):
                    raise
        for patience_s in (0.0, _SETTLE_S) if self._maybe_created else (0.0,):
            # A create call that timed out may still be on its way inside the server.
            time.sleep(patience_s)
            runs = client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{RUN_KEY_TAG}` = '{self.identity.run_key}'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            if runs:
                return runs[0]
        return None

    def offer(self, batch: Sequence[Record]) -> list[tuple[Record, str]]:
        """Sends one batch of `in_batches`, record by record if the server refuses it as a whole.

        Returns:
            Records that this server will never take, with the reason.

        Raises:
            Exception: Whatever MLflow raises when the server cannot take anything now. What was
                sent before may be sent again.
        """
        pauses_s = iter(_PAUSES_S if batch[0].kind in ("inputs", "model") else ())
        while True:
            try:
                self._send(batch)
            except Exception as error:
                if len(batch) > 1 and is_refusal(error):
                    return [refused for record in batch for refused in self.offer([record])]
                is_final = is_refusal(error) or self._lacks(batch[0], error)
                if not is_final and not (batch[0].kind in _APART and self._answers()):
                    raise
                pause_s = None if is_final else next(pauses_s, None)
                if pause_s is None:
                    return [(batch[0], reason_of(error))]
                time.sleep(pause_s)
            else:
                return []

    def _lacks(self, record: Record, error: Exception) -> bool:
        """Whether this server is too old to know the call of such a record."""
        is_missing = record.kind in ("inputs", "model") and status_of(error) in (404, 405, 501)
        return is_missing and self._answers()

    def _answers(self) -> bool:
        """Returns whether the server knows the run right now."""
        try:
            self._client.get_run(self.identity.run_id)
        except Exception:
            return False
        return True

    def _send(self, batch: Sequence[Record]) -> None:
        record = batch[0]
        if record.kind == "artifact":
            self._send_artifact(record)
        elif record.kind == "text":
            self._client.log_text(self.identity.run_id, record.text, record.artifact_path)
        elif record.kind == "status":
            self.end(str(record.values["status"]), record.time_ms)
        elif record.kind in SENDERS:
            SENDERS[record.kind](self._client, self.identity.run_id, record)
        else:
            self._send_values(batch)

    def _send_artifact(self, record: Record) -> None:
        path = Path(record.path)
        if not (path.is_file() or path.is_dir()):  # A pipe or a device would have no end.
            raise FileNotFoundError(f"{path}: the artifact is gone")
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self.identity.run_id, record.path, record.artifact_path or None)

    def _send_values(self, batch: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for record in batch:
            for key, value in record.values.items():
                if record.kind == "tags":
                    tags[key] = str(value)[:MAX_RUN_TAG_CHARS]
                elif record.kind == "params":
                    params[name_for_mlflow(key)] = str(value)
                else:
                    name = name_of_metric(key)
                    metrics.append(Metric(name, float(value), record.time_ms, record.step))
        # MLflow refuses to change a parameter. A resumed run that does so keeps the first value,
        # and says the new one in a tag.
        for key in params.keys() & self._params.keys():
            value = params.pop(key)
            if value != self._params[key]:
                tags[CHANGED_TAG + key] = value[:MAX_RUN_TAG_CHARS]
        self._client.log_batch(
            self.identity.run_id,
            metrics=metrics,
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._params |= params

    def end(self, status: str, time_ms: int) -> None:
        """Marks the run as ended (FINISHED, FAILED or KILLED), or as one that others go on with.

        UNCHANGED is how a guest leaves a run, but for one that had to be made for it.
        """
        if status == "UNCHANGED":
            if not self._created:
                return
            status = "FINISHED"
        if status == "RUNNING":
            self._client.update_run(self.identity.run_id, status=status)
        else:
            self._client.set_terminated(self.identity.run_id, status, time_ms)

    def ui_hint(self) -> str:
        """Says how to open the MLflow UI on this run; without credentials."""
        place = ""
        if self.experiment_id and self.identity.run_id:
            # Without the type the page opens as one about language models, with empty tabs.
            place = f"/#/experiments/{self.experiment_id}/runs/{self.identity.run_id}"
            place += "?workflowType=machine_learning"
        if self.uri.startswith(("http://", "https://")):
            return redact_text(self.uri.rstrip("/")) + place
        command = f"mlflow ui --backend-store-uri {redact_text(self.uri)} --port 5000"
        return f"{command}   # then open http://127.0.0.1:5000{place}"
