"""Kills, stops and other numbers of workers on real processes; see `same_weights`."""

import pytest

from tests.integration.same_weights import SAME, SAME_ACROSS_WORKERS, Comparison
from tests.integration.training_runs import compare

STEPS = 60

# Slow: trainings in processes of their own.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    """The undisturbed run, in double precision."""
    found = Comparison(tmp_path_factory.mktemp("same-weights"), STEPS, "fp64")
    found.undisturbed()
    return found


@pytest.mark.parametrize(
    "scenario",
    ["killed", "job_stopped", "other_workers"],
)
def test_the_same_weights_whatever_happens(comparison, scenario):
    comparison.failed = False
    getattr(comparison, scenario)()
    found = compare(comparison.runs, "undisturbed", scenario, STEPS)
    assert found.same_order
    if scenario == "other_workers":  # Sums over other numbers of workers are rounded otherwise.
        assert found.relative <= SAME_ACROSS_WORKERS["fp64"]
    else:
        assert found.absolute <= SAME
    # Nor was more lost than the scenario allows.
    assert not comparison.failed
