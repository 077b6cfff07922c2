"""Jobs that are killed, or whose disk refuses, at some writes go on by the same command."""

import pytest

from tests.integration.write_points import JOBS, try_points, try_two, world

# A Ray of its own, and each point is two runs of a job; all points: the module's own command.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with world(tmp_path_factory.mktemp("points")) as made:
        yield made


@pytest.mark.parametrize(
    ("job", "points", "kinds"),
    [
        ("predict", 2, ("kill", "empty", "ENOSPC", "EROFS")),
        ("registry", 2, ("kill", "ENOSPC")),
        ("prepare", 2, ("kill", "EACCES")),
        ("evaluate", 1, ("kill", "ENOSPC")),
        ("train", 1, ("kill",)),
    ],
)
def test_the_same_command_goes_on_after_a_fault(made, job, points, kinds):
    assert set(JOBS) >= {job}
    assert try_points(made, job, points, kinds) == []


@pytest.mark.parametrize("job", ["predict", "evaluate"])
def test_two_at_once_leave_one_right_result(made, job):
    assert try_two(made, job) == ""
