import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.checkpoints.environment import (
    COMMIT_FILE,
    UNKNOWN,
    git_commit,
    library_versions,
    ray_job_id,
    source_fingerprint,
)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one tracked file, and its commit."""
    monkeypatch.delenv("LSEG_GIT_COMMIT", raising=False)
    code = tmp_path / "code.py"
    code.write_text("a = 1\n")

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag must not replace the hash")
    return code, git("rev-parse", "HEAD")


def test_commit_of_a_clean_and_a_changed_checkout(checkout):
    code, commit = checkout
    assert git_commit(code) == commit
    code.write_text("a = 2\n")
    assert git_commit(code) == f"{commit}-dirty"


def test_a_file_that_the_repository_around_it_does_not_track(checkout):
    code, _ = checkout
    installed = code.parent / "site-packages" / "pipeline.py"
    installed.parent.mkdir()
    installed.touch()
    assert git_commit(installed) == UNKNOWN


def test_the_environment_comes_first(checkout, monkeypatch):
    monkeypatch.setenv("LSEG_GIT_COMMIT", "abc123")
    assert git_commit(checkout[0]) == "abc123"


def test_an_image_has_its_commit_in_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("LSEG_GIT_COMMIT", raising=False)
    (tmp_path / "code.py").touch()
    assert git_commit(tmp_path / "code.py", tmp_path) == UNKNOWN
    for told, commit in (("", UNKNOWN), (f"{'c' * 40}-dirty\n", f"{'c' * 40}-dirty")):
        (tmp_path / COMMIT_FILE).write_text(told)
        assert git_commit(tmp_path / "code.py", tmp_path) == commit
    text = (Path(__file__).parents[3] / "infra/docker/Dockerfile").read_text()
    assert f"> {COMMIT_FILE}\n" in text


def test_equal_sources_have_one_name_wherever_they_lie(tmp_path):
    def checkout(name: str) -> Path:
        for place in ("jobs/train.py", "model/deep/net.py", "pipeline/table.csv"):
            (tmp_path / name / place).parent.mkdir(parents=True)
            (tmp_path / name / place).write_text(place)
        return tmp_path / name

    one, other = checkout("one"), checkout("other")
    (one / "README.md").write_text("no source")
    (one / "jobs" / "__pycache__").mkdir()
    (one / "jobs" / "__pycache__" / "train.pyc").write_text("nor this")
    name = source_fingerprint(one)
    assert name == source_fingerprint(other)
    assert re.fullmatch(r"[0-9a-f]{16}", name)
    names = {name}
    (other / "model/deep/net.py").write_text("changed")
    names.add(source_fingerprint(other))
    (other / "model/deep/net.py").rename(other / "model/deep/other.py")
    names.add(source_fingerprint(other))
    (other / "pipeline/table.csv").unlink()
    names.add(source_fingerprint(other))
    # Taxonomies and lists of words decide about a run too.
    (other / "pipeline/universal.txt").write_text("road")
    names.add(source_fingerprint(other))
    assert len(names) == 5
    assert source_fingerprint() == source_fingerprint(Path(__file__).parents[3])


def test_library_versions_are_those_imported():
    import mlflow
    import numpy

    versions = library_versions()
    assert versions["mlflow"] == mlflow.__version__
    assert versions["numpy"] == numpy.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_job_id_of_a_submitted_driver(monkeypatch):
    job = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_x"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert ray_job_id() == "raysubmit_x"


def test_job_id_outside_ray(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert ray_job_id() == ""
