"""What a run logs in tests, and what of it has arrived."""

import time

from pipeline.tracking.records import from_line
from tests.support.cpu_cost import costs_at_most


def client_of(config):
    from mlflow import MlflowClient

    return MlflowClient(config.uri)


def runs_of(config, name):
    """All runs of that name, oldest first."""
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.experiment)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in runs if run.info.run_name == name]


def steps_of(config, run_id, key="train/loss"):
    return [metric.step for metric in client_of(config).get_metric_history(run_id, key)]


def log_steps(tracker, first, last):
    """Logs steps first..last-1."""
    for step in range(first, last):
        tracker.log_metrics({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step=step)


def log_steps_at_once(tracker, first, last):
    """Logs steps first..last-1, and checks that no call works for the server or waits for it."""
    begin = time.monotonic()
    # A call takes 1,000 turns; one that tried to connect would take 30,000.
    with costs_at_most(0.01 * (last - first)):
        log_steps(tracker, first, last)
    assert time.monotonic() - begin < 4  # Below the 5 s that one call waits for a silent server.


def wait_until(check, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def spilled(path):
    return [from_line(line) for line in path.read_bytes().splitlines()]
