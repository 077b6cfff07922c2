"""What the tests of infra/ ask of its files: documents, pods, pinned versions, linters."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")


@cache
def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    constraints = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)$", constraints, re.M)
    return version


@cache
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def document(name: str, kind: str) -> dict[str, Any]:
    """The only document of a kind in a file of infra/kuberay."""
    (found,) = [each for each in documents(KUBERAY / name) if each["kind"] == kind]
    return found


def tool(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a linter of the `dev` extra."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert path, f"{name} is missing: install the extra `dev`"
    return subprocess.run([path, *arguments], capture_output=True, text=True, **options)


def cluster_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every RayCluster's spec, alone or within a job, with its file's name."""
    for path in sorted(KUBERAY.glob("*.yaml")):
        for each in documents(path):
            spec = each.get("spec", {})
            spec = spec.get("jobTemplate", spec) if each["kind"] == "RayCronJob" else spec
            if each["kind"] == "RayCluster":
                yield path.name, spec
            elif "rayClusterSpec" in spec:
                yield path.name, spec["rayClusterSpec"]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, found by its containers, with its place."""

    def below(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from below(item, f"{place}[{index}]")
        elif isinstance(value, dict):
            if "containers" in value.get("spec", {}):
                yield place, value
                return
            for key, item in value.items():
                yield from below(item, f"{place}.{key}")

    for path in sorted(KUBERAY.glob("*.yaml")):
        for each in documents(path):
            yield from below(each, f"{path.name}:{each['kind']}")
