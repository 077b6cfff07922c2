"""Kills, stops and other numbers of workers on real processes; see `same_weights`."""

import pytest

from tests.integration import same_weights


# Slow: five trainings and a head node of their own, each of which takes Ray's start.
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_same_weights_whatever_happens(tmp_path, capsys):
    assert same_weights.main(["--steps", "60", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": ok") == 3
