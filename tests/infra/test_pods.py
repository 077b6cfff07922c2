"""The pods on Kubernetes: confined, with accounts of their own, and reached by few."""

import os
import stat
from pathlib import Path, PurePosixPath

import pytest
from ray.dashboard.modules.reporter import reporter_agent

from pipeline.data.shards.cache import FOLDER_VARIABLE, ShardCache
from pipeline.errors import UserError
from tests.support.deployment import (
    ALL,
    NAMESPACES,
    SECRET_NAME,
    WITH_CLUSTER,
    cluster,
    of_kind,
    overlay,
    pods,
)


@pytest.mark.parametrize("name", NAMESPACES)
def test_the_namespace_refuses_pods_with_more_rights_and_warns_of_others(name):
    labels = of_kind(overlay(name), "Namespace")["metadata"]["labels"]
    levels = {key.partition("/")[2]: labels[key] for key in labels if "pod-security" in key}
    assert levels == {"enforce": "baseline", "warn": "restricted"}


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_every_pod_is_confined_and_sized(name):
    for place, template in pods(name).items():
        spec = template["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == 1000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys()
            mounted = {each["name"] for each in container.get("volumeMounts", [])}
            assert mounted == {each["name"] for each in spec.get("volumes", [])}
            for variable in container.get("env", []):
                assert "value" not in variable or not SECRET_NAME.search(variable["name"])
        # Ray's autoscaler, a container beside the head, is all that talks to the API server.
        scaled = cluster(name).get("enableInTreeAutoscaling", False)
        assert spec["automountServiceAccountToken"] is (scaled and "headGroupSpec" in place)


@pytest.mark.parametrize("name", NAMESPACES)
def test_every_pod_has_an_account_of_its_own(name):
    accounts = [each for each in overlay(name) if each["kind"] == "ServiceAccount"]
    assert all(each["automountServiceAccountToken"] is False for each in accounts)
    there = {each["metadata"]["name"] for each in accounts}
    platform = name.partition("/")[0]
    own = pods(*[each for each in WITH_CLUSTER if each.startswith(f"{platform}/")])
    assert {pod["spec"]["serviceAccountName"] for pod in own.values()} == there
    roles = {
        each["metadata"]["name"]: set(each["metadata"].get("annotations", {})) for each in accounts
    }
    annotation = {
        "eks": {"eks.amazonaws.com/role-arn"},
        "gke": {"iam.gke.io/gcp-service-account"},
        "on-prem": set(),
    }[platform]
    assert roles == {"lseg-head": annotation, "lseg-worker": annotation, "lseg-client": set()}


@pytest.mark.parametrize("name", NAMESPACES)
def test_policies_choose_the_right_pods(name):
    policy = of_kind(overlay(name), "NetworkPolicy")["spec"]
    chosen = policy["podSelector"]["matchLabels"].items()
    for place, template in pods(*WITH_CLUSTER).items():
        assert chosen <= template["metadata"]["labels"].items(), place
    assert policy["policyTypes"] == ["Ingress"]
    selectors = [each for rule in policy["ingress"] for each in rule["from"]]
    assert len(selectors) >= 3
    for each in selectors:  # An empty one is everybody.
        assert any(selector.get("matchLabels") for selector in each.values()), each
    ports = [{port["port"] for port in rule.get("ports", [])} for rule in policy["ingress"]]
    assert ports == [set(), {8265}, {8080, 44217, 44227}]  # Its own pods, the operator, Prometheus.
    budget = of_kind(overlay(name), "PodDisruptionBudget")["spec"]
    # KubeRay labels each pod with its kind of node.
    assert budget["selector"]["matchLabels"] == dict(chosen) | {"ray.io/node-type": "head"}
    # Of two clusters' heads none may go: the number must stay out of reach.
    assert budget["minAvailable"] >= 100


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_ray_shows_the_disk_of_the_node_in_a_pod(name, monkeypatch):
    variable = "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"
    spec = cluster(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        assert env[variable] == "1"
    monkeypatch.setattr(reporter_agent, "IN_KUBERNETES_POD", True)
    monkeypatch.setattr(reporter_agent, "ENABLE_K8S_DISK_USAGE", False)
    # What the variable is for: without it Ray answers with figures of no disk.
    assert reporter_agent.ReporterAgent._get_disk_usage("/tmp")["/"].total == 1
    text = Path(reporter_agent.__file__).read_text()
    assert f'ENABLE_K8S_DISK_USAGE = os.environ.get("{variable}") == "1"' in text


def test_nobody_moves_a_pod_of_a_cluster_to_save_a_node():
    own = {place: pod for place, pod in pods(*WITH_CLUSTER).items() if "GroupSpec" in place}
    assert len(own) == 2 * len(WITH_CLUSTER)
    for place, template in own.items():
        annotations = template["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false", place
        assert annotations["karpenter.sh/do-not-disrupt"] == "true", place


def test_secrets_are_references():
    assert not [each for name in ALL for each in overlay(name) if each["kind"] == "Secret"]
    for place, template in pods(*WITH_CLUSTER).items():
        if "GroupSpec" in place:
            for container in template["spec"]["containers"]:
                assert container["envFrom"] == [{"secretRef": {"name": "lseg-env"}}]


def test_copies_lie_below_the_root_of_their_volume(tmp_path):
    places = []
    for template in pods(*WITH_CLUSTER).values():
        for container in template["spec"]["containers"]:
            env = {each["name"]: each.get("value") for each in container.get("env", [])}
            for variable in (FOLDER_VARIABLE, "LSEG_WEIGHTS_CACHE_DIR"):
                if place := env.get(variable):
                    mounts = [PurePosixPath(m["mountPath"]) for m in container["volumeMounts"]]
                    (mount,) = [
                        each for each in mounts if PurePosixPath(place).is_relative_to(each)
                    ]
                    places.append(PurePosixPath(place).relative_to(mount))
    assert len(places) == 2 * len(WITH_CLUSTER)
    # As kubelet makes it with an fsGroup; of root's, where tests run as root too.
    volume = tmp_path / "volume"
    volume.mkdir()
    if os.getuid() == 0:
        os.chown(volume, 12345, 100)
    volume.chmod(0o2777)
    with pytest.raises(UserError, match="this user alone"):
        ShardCache(volume, 1)
    for place in set(places):
        ShardCache(volume / place, 1)
        assert stat.S_IMODE((volume / place).stat().st_mode) & 0o777 == 0o700


def test_pods_ask_for_the_disk_that_their_volumes_may_take():
    for place, template in pods(*WITH_CLUSTER).items():
        volumes = [each["emptyDir"] for each in template["spec"].get("volumes", [])]
        on_disk = [each["sizeLimit"] for each in volumes if each.get("medium") != "Memory"]
        wanted = sum(int(size.removesuffix("Gi")) for size in on_disk)
        if wanted:
            (container,) = template["spec"]["containers"]
            for kind in ("requests", "limits"):
                size = container["resources"][kind]["ephemeral-storage"]
                assert int(size.removesuffix("Gi")) > wanted, (place, kind)
