"""Kills, stops and other numbers of workers on real processes; see `same_weights`."""

import pytest

from tests.integration import same_weights

ONLY = ["--only", "other_workers"]


# Slow: three trainings. The command also kills workers, as test_resume does, and stops jobs.
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_same_weights_whatever_happens(tmp_path, capsys):
    assert same_weights.main(["--steps", "60", "--out", str(tmp_path), *ONLY]) == 0
    assert capsys.readouterr().out.count(": ok") == 1
