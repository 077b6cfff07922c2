"""Jobs that are killed, or whose disk refuses, at some writes go on by the same command."""

import pytest

from tests.integration.write_points import try_points, try_two, world

# A Ray of its own, and each point is two runs of a job; all points: the module's own command.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with world(tmp_path_factory.mktemp("points")) as made:
        yield made


@pytest.mark.parametrize(
    ("job", "points", "kinds"),
    [
        ("predict", 2, ("kill", "empty", "ENOSPC")),
        ("registry", 1, ("kill",)),
        ("prepare", 1, ("kill",)),
        ("evaluate", 1, ("ENOSPC",)),
    ],
)
def test_the_same_command_goes_on_after_a_fault(made, job, points, kinds):
    assert try_points(made, job, points, kinds) == []


def test_two_at_once_leave_one_right_result(made):
    assert try_two(made, "predict") == ""
