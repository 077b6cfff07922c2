"""Separates an outage of MLflow, which passes, from a refusal, which no waiting cures.

An outage never stops a training: what is logged waits in the journal. A refusal is reported before
the training starts, and with its remedy: a week later the time is lost.
"""

import re
from typing import Any

from pipeline.errors import UserError
from pipeline.tracking.redaction import redact_text

_PASSING = (408, 409, 425, 429, 499)
"""Answers below 500 after which the same call may succeed later."""
_WORDS = {401: r"unauthori[sz]ed", 403: "forbidden", 404: "not found", 405: "method not allowed"}
"""What servers that are no MLflow say in place of a code of MLflow's."""
_BROKEN_DATABASES = (
    "file is not a database",
    "unable to open database file",
    "readonly database",
    "out-of-date database schema",
)


class MlflowRefused(UserError):
    """MLflow answers, and says no in a way that waiting does not change."""


def deleted(experiment: str, experiment_id: str, uri: str) -> MlflowRefused:
    """The refusal of an experiment that lies in MLflow's bin."""
    return MlflowRefused(
        f"tracking.experiment={experiment}: was deleted in {redact_text(uri)}: restore it with "
        f"`mlflow experiments restore -x {experiment_id}`, or give a new run another experiment"
    )


def refusal_of(error: BaseException, uri: str, experiment: str) -> MlflowRefused | None:
    """The refusal that an error of MLflow stands for; None for an outage.

    Args:
        error: What a call of MLflow's client has raised.
        uri: The tracking URI that was called.
        experiment: The name of the run's experiment.
    """
    if isinstance(error, MlflowRefused):
        return error
    reason = redact_text(" ".join(str(error).split()))[:200]
    where = f"tracking.uri={redact_text(uri)}"
    if any(words in str(error) for words in _BROKEN_DATABASES):
        return MlflowRefused(
            f"{where}: is no database that this MLflow can use ({reason}): give another file, or "
            "bring an old one up to date with `mlflow db upgrade URI`"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return MlflowRefused(
            f"{where}: its certificate is not trusted here ({reason}): name the file of the "
            "authority in REQUESTS_CA_BUNDLE, or give another address"
        )
    status = status_of(error)
    if status is None or not 400 <= status < 500 or status in _PASSING:
        return None
    if status == 401:
        return MlflowRefused(
            f"{where}: asks for a login (401: {reason}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    if status == 403:
        return MlflowRefused(
            f"{where}: forbids this user the experiment {experiment!r} (403: {reason}): have the "
            "permission to edit it granted, or give another tracking.experiment"
        )
    if status in (404, 405):
        return MlflowRefused(
            f"{where}: no MLflow answers at this address ({status}: {reason}): check the path, the "
            "port and the host"
        )
    return MlflowRefused(
        f"tracking.experiment={experiment}: is refused by {redact_text(uri)} ({status}: {reason}): "
        "give another name"
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of MLflow's client stands for; None for any other error."""
    code = getattr(error, "error_code", None)
    if code is None or code == "RESOURCE_DOES_NOT_EXIST":
        return None
    # MLflow makes 500 of every status that it does not know, and says the real one in words.
    if number := re.search(r"failed with error code (\d{3})\b", str(error)):
        return int(number[1])
    if "not in a valid JSON format" in str(error):
        return 404  # The page of another service, which says 200 to whatever it is asked.
    answer: Any = getattr(error, "json", None)
    if isinstance(answer, dict) and "error_code" not in answer:
        text = str(answer).lower()
        return next((status for status, words in _WORDS.items() if re.search(words, text)), 500)
    status = getattr(error, "get_http_status_code", None)
    return status() if status is not None else None
