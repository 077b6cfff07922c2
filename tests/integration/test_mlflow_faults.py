"""A server that does not answer neither blocks a step nor loses a metric; see `mlflow_faults`."""

import pytest

from tests.integration.mlflow_faults import NO_CALL_WAITED_S, run_faults


# Slow: a training and four starts of an MLflow server, of some ten seconds each.
@pytest.mark.long
def test_no_step_waits_and_no_metric_is_lost(tmp_path):
    faults = run_faults(tmp_path, seconds=7, cycles=1)
    assert {s.state for s in faults.stretches} == {
        "refused", "healthy", "frozen", "killed", "dead at the end",
    }  # fmt: skip
    assert faults.missing == []
    assert faults.twice == []
    assert "sent" in faults.replayed
    for state in ("refused", "frozen", "killed", "dead at the end"):
        assert faults.longest_s(state) < NO_CALL_WAITED_S, state
