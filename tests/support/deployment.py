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


def tool(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a linter of the `dev` extra."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert path, f"{name} is missing: install the extra `dev`"
    return subprocess.run([path, *arguments], capture_output=True, text=True, **options)


OVERLAYS = ("namespace", "cluster", "train", "check", "nightly")
PLATFORMS = ("eks", "gke", "on-prem")


@cache
def rendered(folder: Path) -> list[dict[str, Any]]:
    """The documents of a kustomization, as kubectl makes them."""
    done = tool("kubectl", "kustomize", str(folder))
    assert (done.returncode, done.stderr) == (0, ""), f"{folder}: {done.stderr}"
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def overlay(name: str) -> list[dict[str, Any]]:
    """The documents of a shipped overlay, by `platform/overlay`."""
    return rendered(KUBERAY / "overlays" / name)


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only document of a kind."""
    (found,) = [each for each in documents if each["kind"] == kind]
    return found


def job_spec(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of the RayJob, also of the one that a RayCronJob makes."""
    (spec,) = [each["spec"] for each in documents if each["kind"] in ("RayJob", "RayCronJob")]
    return spec.get("jobTemplate", spec)


def cluster_specs(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every RayCluster's spec, alone or within a job."""
    found = [each["spec"] for each in documents if each["kind"] == "RayCluster"]
    jobs = [each for each in documents if each["kind"] in ("RayJob", "RayCronJob")]
    return found + [job_spec([each])["rayClusterSpec"] for each in jobs]


def pod_templates(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
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

    for each in documents:
        yield from below(each, each["kind"])


ALL = [f"{platform}/{name}" for platform in PLATFORMS for name in OVERLAYS]
NAMESPACES = [name for name in ALL if name.endswith("/namespace")]
WITH_CLUSTER = [name for name in ALL if name not in NAMESPACES]
AUTOSCALED = [name for name in ALL if name.endswith(("/cluster", "/nightly"))]
JOBS = [name for name in ALL if name.endswith(("/train", "/check", "/nightly"))]


def cluster(name: str) -> dict[str, Any]:
    """The only cluster's spec of an overlay."""
    (spec,) = cluster_specs(overlay(name))
    return spec


def pods(*names: str) -> dict[str, dict[str, Any]]:
    """The pod templates of overlays, by `platform/overlay:place`."""
    return {f"{name}:{place}": pod for name in names for place, pod in pod_templates(overlay(name))}


def write_rendered(folder: Path) -> None:
    """Writes each overlay, and below `pods` its pods as such: few tools know those of KubeRay."""
    (folder / "pods").mkdir(parents=True, exist_ok=True)
    for name in ALL:
        file = f"{name.replace('/', '-')}.yaml"
        (folder / file).write_text(yaml.safe_dump_all(overlay(name)))
        alone = []
        for place, pod in pods(name).items():
            kind = {"headGroupSpec": "head", "workerGroupSpecs": "worker"}
            names = [short for key, short in kind.items() if key in place] or ["client"]
            metadata = pod["metadata"] | {"name": names[0], "namespace": "lseg"}
            alone.append(pod | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
        (folder / "pods" / file).write_text(yaml.safe_dump_all(alone))
        print(folder / file)


if __name__ == "__main__":
    write_rendered(Path(sys.argv[1]))
