"""The files of infra/ against the schemas and versions that they must agree with."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCHEMAS = ROOT.parent / "shared" / "reference" / "kuberay"
KUBERAY = sorted((INFRA / "kuberay").glob("*.yaml"))


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return version


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_file_follows_the_schema_of_its_kind(path):
    document = yaml.safe_load(path.read_text())
    schema = SCHEMAS / f"{document['kind'].lower()}-ray-v1.strict.schema.json"
    if not schema.is_file():
        pytest.skip("there are no KubeRay schemas beside the checkout")
    errors = jsonschema.Draft7Validator(json.loads(schema.read_text())).iter_errors(document)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_file_names_the_pinned_ray(path):
    assert re.findall(r'rayVersion: "(.+)"', path.read_text()) == [pinned("ray")]


def test_dockerfile_starts_from_the_pinned_ray_and_ends_as_a_plain_user():
    lines = (INFRA / "docker" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == [
        f"FROM rayproject/ray:{pinned('ray')}-py312-gpu"
    ]
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]


@pytest.mark.parametrize("name", ["lseg-retrain.service", "lseg-retrain.timer"])
def test_systemd_unit_has_its_section(name):
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # pyright: ignore
    unit.read_string((INFRA / "systemd" / name).read_text())
    expected = {"service": ("Service", "ExecStart"), "timer": ("Timer", "OnCalendar")}
    section, key = expected[name.rsplit(".", 1)[1]]
    assert unit[section][key]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_accepts_the_calendar():
    timer = (INFRA / "systemd" / "lseg-retrain.timer").read_text()
    (calendar,) = re.findall(r"^OnCalendar=(.+)$", timer, re.M)
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_launcher_file_follows_rays_own_schema():
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    config = yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert config["head_node_type"] in config["available_node_types"]
