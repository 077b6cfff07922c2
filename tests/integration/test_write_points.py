"""Jobs that are killed, or whose disk refuses, at some writes go on by the same command."""

from pathlib import Path

import pytest

from tests.support.ray_fixtures import run_command

# A Ray of its own, and each point is two runs of a job; all points: the module's own command.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the jobs work on: made by the first of them, and kept for the others."""
    return tmp_path_factory.mktemp("points")


def run(folder: Path, *words: str) -> None:
    """Runs the command on what the others have made."""
    run_command("tests.integration.write_points", *words, "--folder", str(folder))


@pytest.mark.parametrize(
    ("job", "kinds"),
    [
        ("predict", ("kill", "empty", "ENOSPC")),
        pytest.param("registry", ("kill",), marks=pytest.mark.long),
        pytest.param("prepare", ("kill",), marks=pytest.mark.long),
        pytest.param("evaluate", ("ENOSPC",), marks=pytest.mark.long),
    ],
)
def test_the_same_command_goes_on_after_a_fault(folder, job, kinds):
    run(folder, job, "--points", "1", "--kinds", *kinds)


def test_two_at_once_leave_one_right_result(folder):
    run(folder, "predict", "--two")
