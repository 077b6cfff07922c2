"""Each job runs the checkout that it lies in, and answers before it imports its work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "model", "pipeline")
JOBS = sorted(
    path.stem for path in (REPOSITORY / "jobs").glob("*.py") if "__main__" in path.read_text()
)

MARKER = """
import atexit, sys
HEAVY = "torch ray mlflow timm matplotlib open_clip torchvision pandas pyarrow optuna".split()
def report():
    roots = set()
    for name, module in sys.modules.items():
        if name.split(".")[0] in ("jobs", "model", "pipeline"):
            roots.add(module.__file__.partition("/" + name.replace(".", "/"))[0])
    print("ours:", *sorted(roots))
    print("heavy:", *[name for name in HEAVY if name in sys.modules])
atexit.register(report)
"""

PROBE = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import start_ray

start_ray(1)
import ray

@ray.remote
def places():
    import jobs.cli, model.errors, pipeline.errors
    return [module.__file__ for module in (jobs.cli, model.errors, pipeline.errors)]

print(*ray.get(places.remote()), sep="\\n")
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A second checkout beside the installed one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in PACKAGES:
        unneeded = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=unneeded)
    (folder / "jobs/probe.py").write_text(PROBE)
    with (folder / "pipeline/errors.py").open("a") as file:
        file.write(MARKER)
    return folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A working folder with a third checkout, none of whose modules can be imported."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong checkout')\n")
    return tmp_path


def started(job: Path, folder: Path, *words: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(job), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_jobs_are_found():
    assert {"train_mix", "demo", "doctor", "track", "import_official"} <= set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_runs_its_own_checkout_and_helps_before_it_imports_its_work(clone, elsewhere, job):
    lines = started(clone / f"jobs/{job}.py", elsewhere, "--help")
    assert f"usage: {job}.py" in lines[0]
    assert lines[-2:] == [f"ours: {clone}", "heavy:"]


@pytest.mark.slow
def test_workers_of_a_local_ray_import_the_checkout_of_their_job(clone, elsewhere):
    modules = ("jobs/cli.py", "model/errors.py", "pipeline/errors.py")
    printed = started(clone / "jobs/probe.py", elsewhere)
    assert printed[: len(modules)] == [f"{clone}/{module}" for module in modules]
