"""Tries whether MLflow takes a run: writes one of its own, reads it back, and deletes it."""

import time

from pipeline.tracking.config import TrackingConfig, server_uri
from pipeline.tracking.mlflow_run import MlflowRun, prepare_environment
from pipeline.tracking.records import RunIdentity
from pipeline.tracking.redaction import reason_of

NAME = "check_cluster"


def try_server(config: TrackingConfig) -> tuple[float, str]:
    """Writes a run with one metric into the experiment, and deletes it.

    Args:
        config: Where to; the experiment is created if it is missing, as by a training.

    Returns:
        Seconds that it took, and what is wrong; empty where nothing is.
    """
    prepare_environment()
    from mlflow import MlflowClient

    uri = server_uri(config)
    began = time.monotonic()
    try:
        identity = RunIdentity(experiment=config.experiment, run_name=NAME, run_key="")
        experiment = MlflowRun(uri, identity, config.artifacts).find_experiment()
        client = MlflowClient(uri)
        run = client.create_run(experiment, run_name=NAME).info.run_id
        try:
            client.log_metric(run, "check", 1.0)
            found = client.get_run(run).data.metrics
            problem = "" if found == {"check": 1.0} else f"the metric came back as {found}"
        finally:
            client.delete_run(run)
    # MLflow's own, requests', and whatever a proxy in between answers with.
    except Exception as error:
        problem = reason_of(error)
    return time.monotonic() - began, problem
