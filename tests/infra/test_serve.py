"""The RayService of each platform: schemas, what Serve makes of it, who may call, where it runs."""

import importlib
import json
from functools import cache

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from pipeline.serving.config import ServeConfig
from pipeline.serving.gate import KEY
from tests.support.deployment import (
    INFRA,
    PLATFORMS,
    cluster,
    of_kind,
    pinned,
    pod_templates,
    project,
    rendered,
)

SERVE = INFRA / "serve"
CORE_VERSION = "1.37"
OF_A_WORKER = {"app.kubernetes.io/part-of": "lseg", "ray.io/node-type": "worker"}
"""Labels of a worker of any cluster of ours; KubeRay sets the second."""


@cache
def service(platform: str) -> list[dict]:
    """The documents of a platform's service."""
    return rendered(SERVE / platform)


@pytest.fixture(params=PLATFORMS)
def documents(request) -> list[dict]:
    return service(request.param)


def test_it_follows_the_schemas(documents, shared_data):
    assert sorted(each["kind"] for each in documents) == ["NetworkPolicy", "RayService"]
    path = shared_data("reference/kuberay") / "rayservice-ray-v1.strict.schema.json"
    validator = jsonschema.Draft7Validator(json.loads(path.read_text()))
    found = of_kind(documents, "RayService")
    assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(found)] == []
    kubernetes_validate.validate(of_kind(documents, "NetworkPolicy"), CORE_VERSION, strict=True)
    templates = list(pod_templates(documents))
    assert len(templates) == 2
    for _, pod in templates:
        named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]}
        kubernetes_validate.validate(named, CORE_VERSION, strict=True)
        (container,) = pod["spec"]["containers"]
        assert container["image"] == f"lseg-ray:{project()['version']}"
        assert container["envFrom"] == [{"secretRef": {"name": "lseg-env"}}]
    assert {each["metadata"]["namespace"] for each in documents} == {"lseg"}


def test_serve_accepts_it_and_our_settings_fit_the_pods(documents, monkeypatch):
    spec = of_kind(documents, "RayService")["spec"]
    assert spec["rayClusterConfig"]["rayVersion"] == pinned("ray")
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    serve = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = serve.applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    # Without a key it would be open to all.
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(ValueError, match=KEY):
        build(application.args)
    monkeypatch.setenv(KEY, "k" * 24)
    assert build(application.args) is not None
    config = ServeConfig(**application.args)
    assert config.checkpoint.endswith("@champion")
    assert config.follow_s > 0
    assert serve.http_options.request_timeout_s > config.max_call_s
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    fit = min(int(limits["nvidia.com/gpu"]) // config.gpus, int(limits["cpu"]) // config.cpus)
    assert fit >= 1
    assert group["minReplicas"] * fit >= config.replicas >= 2  # One may go.
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    port = serve.http_options.port
    assert port in [each["containerPort"] for each in container["ports"]]
    assert spec["excludeHeadPodFromServeSvc"] is True


def test_a_service_is_known_by_its_api(documents):
    # Also where the schemas are not at hand.
    assert {each["kind"]: each["apiVersion"] for each in documents} == {
        "NetworkPolicy": "networking.k8s.io/v1",
        "RayService": "ray.io/v1",
    }


def test_who_may_call(documents):
    spec = of_kind(documents, "NetworkPolicy")["spec"]
    # The workers, which have the proxies; a head stays closed.
    assert spec["podSelector"] == {"matchLabels": OF_A_WORKER}
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert {"namespaceSelector": {"matchLabels": {"lseg/may-call": "true"}}} in rule["from"]
    assert all("podSelector" in each or each["namespaceSelector"] for each in rule["from"])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_pods_are_those_of_a_training_but_on_nodes_that_stay(platform):
    spec = of_kind(service(platform), "RayService")["spec"]["rayClusterConfig"]
    training = cluster(f"{platform}/cluster")
    assert spec["headGroupSpec"] == training["headGroupSpec"]
    (ours,), (theirs,) = spec["workerGroupSpecs"], training["workerGroupSpecs"]
    pod = ours["template"]["spec"]
    assert "nodeAffinity" not in pod["affinity"]
    assert "podAffinity" not in pod["affinity"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert apart["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": OF_A_WORKER},
    }
    assert (
        OF_A_WORKER.items()
        <= (dict(ours["template"]["metadata"]["labels"]) | {"ray.io/node-type": "worker"}).items()
    )
    same = ("securityContext", "tolerations", "serviceAccountName")
    assert all(pod[name] == theirs["template"]["spec"][name] for name in same)
    (container,) = pod["containers"]
    (other,) = theirs["template"]["spec"]["containers"]
    assert container["lifecycle"] == other["lifecycle"]
    assert container["env"] == other["env"]


def test_every_file_is_part_of_a_platform():
    texts = "".join(path.read_text() for path in SERVE.rglob("kustomization.yaml"))
    files = [path for path in SERVE.rglob("*.yaml") if path.name != "kustomization.yaml"]
    assert len(files) == 4
    assert all(path.name in texts for path in files)
    assert {path.name for path in SERVE.iterdir()} == {*PLATFORMS, "base", "pods", "priority"}
