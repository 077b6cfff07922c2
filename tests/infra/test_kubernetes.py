"""The Kubernetes files: schemas, what keeps a run alive, and what keeps others out."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path, PurePosixPath

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.scripts.scripts import start

from jobs.cli import parse
from pipeline.data.shards.cache import FOLDER_VARIABLE, ShardCache
from pipeline.errors import UserError
from pipeline.registry.locks import LOCKED_EXIT_CODE
from pipeline.tracking.mlflow_run import MlflowUnavailable
from pipeline.training.config import TrainMixConfig
from tests.support.deployment import (
    KUBERAY,
    ROOT,
    SECRET_NAME,
    cluster_specs,
    document,
    documents,
    pinned,
    pod_templates,
    project,
    tool,
)

FILES = sorted(KUBERAY.glob("*.yaml"))
RAY_KINDS = {"RayCluster", "RayJob", "RayCronJob"}
CORE_KINDS = {"CronJob", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"}
CORE_VERSION = "1.37"
IMAGE_FOLDER = "/home/ray/lseg/"
CLUSTERS = dict(cluster_specs())
PODS = dict(pod_templates())


def all_documents():
    return [(path, each) for path in FILES for each in documents(path)]


def job_words(name: str) -> list[str]:
    """The command line of the job that a file submits, with the recipe of this checkout."""
    if name == "cronjob-retrain.yaml":
        (template,) = [pod for place, pod in PODS.items() if place.startswith(name)]
        env = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
        return ["jobs/retrain.py", *shlex.split(env["LSEG_RETRAIN_ARGS"])]
    (spec,) = [each["spec"] for each in documents(KUBERAY / name)]
    words = shlex.split(spec.get("jobTemplate", spec)["entrypoint"])
    assert words[0] == "python"
    return [word.removeprefix(IMAGE_FOLDER) for word in words[1:]]


def config_of(words: list[str], monkeypatch) -> TrainMixConfig:
    monkeypatch.chdir(ROOT)
    if words[0] == "jobs/train_mix.py":
        return parse(TrainMixConfig, words[1:])
    module = pytest.importorskip("pipeline.retraining.config")
    return parse(module.RetrainConfig, words[1:])


def test_all_kinds_are_there():
    kinds = sorted(each["kind"] for _, each in all_documents())
    assert kinds == sorted([*RAY_KINDS, *CORE_KINDS, "Kustomization"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kuberay_document_follows_the_schema_of_its_kind(path, shared_data):
    for each in documents(path):
        if each["kind"] not in RAY_KINDS:
            continue
        name = f"{each['kind'].lower()}-ray-v1.strict.schema.json"
        schema = shared_data("reference/kuberay") / name
        errors = jsonschema.Draft7Validator(json.loads(schema.read_text())).iter_errors(each)
        assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_core_documents_and_all_pods_follow_the_schemas_of_kubernetes():
    core = [each for _, each in all_documents() if each["kind"] in CORE_KINDS]
    assert len(core) == len(CORE_KINDS)
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
        for template in PODS.values()
    ]
    assert len(pods) == 9
    for each in core + pods:
        kubernetes_validate.validate(each, CORE_VERSION, strict=True)


def test_kustomization_names_files_that_exist_and_builds():
    resources = document("kustomization.yaml", "Kustomization")["resources"]
    namespace = document("policies.yaml", "Namespace")["metadata"]["name"]
    assert document("kustomization.yaml", "Kustomization")["namespace"] == namespace
    assert [name for name in resources if not (KUBERAY / name).is_file()] == []
    (image,) = document("kustomization.yaml", "Kustomization")["images"]
    assert image == {"name": "lseg-ray", "newName": "lseg-ray", "newTag": project()["version"]}
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(KUBERAY)]
        built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kinds = [each["kind"] for each in yaml.safe_load_all(built)]
        assert {"RayCluster", "CronJob", "PodDisruptionBudget"} <= set(kinds)
        assert not {"RayJob", "RayCronJob"} & set(kinds)


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_is_of_the_pinned_ray_and_starts_it_with_options_that_exist(name):
    spec = CLUSTERS[name]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        words = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        start.make_context("start", words)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_never_runs_where_workers_run(name):
    spec = CLUSTERS[name]

    def terms(group):
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]

    def facts(expressions, operator):
        assert {each["operator"] for each in expressions} == {operator}
        return {(each["key"], value) for each in expressions for value in each["values"]}

    (head,) = terms(spec["headGroupSpec"])  # All of it must hold.
    (workers,) = spec["workerGroupSpecs"]
    spot = [fact for term in terms(workers) for fact in facts(term, "In")]  # One of them holds.
    assert facts(head, "NotIn") == set(spot)
    tolerated = {each["key"] for each in workers["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "lseg/capacity"} == tolerated


@pytest.mark.parametrize("name", ["rayjob-train.yaml", "raycronjob-retrain.yaml"])
def test_a_job_of_its_own_cluster_comes_back_and_cleans_up(name):
    (spec,) = [each["spec"] for each in documents(KUBERAY / name)]
    spec = spec.get("jobTemplate", spec)
    # Each time costs a cluster, whatever the exit code: that of the training with all its GPUs.
    assert spec["backoffLimit"] == (2 if name.startswith("rayjob") else 1)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    stop_s = int(variables["RAY_JOB_STOP_WAIT_TIME_S"])
    assert 60 <= stop_s < head["terminationGracePeriodSeconds"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    deadline = spec.get("activeDeadlineSeconds")
    assert deadline is None if name.startswith("rayjob") else 3600 < deadline < 24 * 3600


@pytest.mark.parametrize(
    "name", ["rayjob-train.yaml", "raycronjob-retrain.yaml", "cronjob-retrain.yaml"]
)
def test_the_job_accepts_its_arguments_and_fits_into_its_cluster(name, monkeypatch):
    words = job_words(name)
    config = config_of(words, monkeypatch)
    for key in ("--run.name", "--run.storage", "--data.shards"):
        assert words.count(key) == 1
    assert config.run.storage.startswith("s3://")
    spec = CLUSTERS[name if name in CLUSTERS else "raycluster.yaml"]
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert group["maxReplicas"] * int(limits["cpu"]) >= config.logical_cpus
    assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) >= config.cluster.num_workers
    assert config.cluster.use_gpu
    if not spec.get("enableInTreeAutoscaling"):  # All there is, from the start: no more, no less.
        sizes = {group[key] for key in ("replicas", "minReplicas", "maxReplicas")}
        assert sizes == {config.cluster.num_workers}
    volumes = {each["name"]: each["emptyDir"] for each in group["template"]["spec"]["volumes"]}
    assert int(volumes["cache"]["sizeLimit"].removesuffix("Gi")) > config.data.cache_gib
    shm_bytes = int(volumes["shm"]["sizeLimit"].removesuffix("Gi")) * 2**30
    assert int(group["rayStartParams"]["object-store-memory"]) < shm_bytes


@pytest.mark.parametrize("name", ["raycluster.yaml", "raycronjob-retrain.yaml"])
def test_gpu_nodes_come_only_when_a_job_asks_for_them(name):
    spec = CLUSTERS[name]
    assert spec["enableInTreeAutoscaling"] is True
    options = spec["autoscalerOptions"]
    assert options["version"] == "v2"
    assert 60 <= options["idleTimeoutSeconds"] <= 1800
    assert {"cpu", "memory"} <= options["resources"]["limits"].keys()
    hardened = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert options["securityContext"] == hardened
    # The operator makes an account with the rights of the autoscaler where none is named.
    assert "serviceAccountName" not in spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


def test_every_job_waits_for_nodes_that_are_yet_to_come():
    for name in ("rayjob-train.yaml", "raycronjob-retrain.yaml"):
        (spec,) = [each["spec"] for each in documents(KUBERAY / name)]
        variables = yaml.safe_load(spec.get("jobTemplate", spec)["runtimeEnvYAML"])["env_vars"]
        assert float(variables["LSEG_CLUSTER_WAIT_S"]) >= 600
        assert float(variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) >= 600


@pytest.mark.parametrize("name", ["raycronjob-retrain.yaml", "cronjob-retrain.yaml"])
def test_the_schedule_is_nightly(name):
    (spec,) = [each["spec"] for each in documents(KUBERAY / name) if "CronJob" in each["kind"]]
    assert re.fullmatch(r"[0-5]?\d ([01]?\d|2[0-3]) \* \* \*", spec["schedule"])
    assert spec["timeZone"] == "Etc/UTC"


def test_the_cron_job_has_no_rights_and_knows_the_standing_cluster():
    spec = document("cronjob-retrain.yaml", "CronJob")["spec"]
    account = document("cronjob-retrain.yaml", "ServiceAccount")
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["command"] == [f"{IMAGE_FOLDER}infra/retrain.sh"]
    env = {each["name"]: each for each in container["env"]}
    cluster = document("raycluster.yaml", "RayCluster")["metadata"]["name"]
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_ADDRESS"]["value"] == f"http://{cluster}-head-svc:8265"
    # The operator names the token's secret after the cluster.
    secret = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": cluster, "key": "auth_token"}
    # A pod that is moved ends with 143 as well as one whose job was stopped: the first rule counts.
    moved, ended = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert (moved["action"], ended["action"]) == ("Ignore", "FailJob")
    assert moved["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = ended["onExitCodes"]
    assert codes["containerName"] == container["name"]
    assert codes["values"] == [2, LOCKED_EXIT_CODE, 143]
    assert MlflowUnavailable.exit_code not in codes["values"]  # It may answer the next time.
    assert spec["jobTemplate"]["spec"]["backoffLimit"] >= 2


@pytest.mark.parametrize("place", PODS)
def test_every_pod_is_confined_and_sized(place):
    spec = PODS[place]["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["image"] == f"lseg-ray:{project()['version']}"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys()
        mounted = {each["name"] for each in container.get("volumeMounts", [])}
        assert mounted == {each["name"] for each in spec.get("volumes", [])}
        for variable in container.get("env", []):
            assert "value" not in variable or not SECRET_NAME.search(variable["name"])
    # Ray's autoscaler, a container beside the head, is the only one that talks to the API server.
    scaled = CLUSTERS.get(place.partition(":")[0], {}).get("enableInTreeAutoscaling", False)
    autoscaler = scaled and "headGroupSpec" in place
    assert spec.get("automountServiceAccountToken", True) is autoscaler


def test_policies_choose_the_right_pods():
    policy = document("policies.yaml", "NetworkPolicy")["spec"]
    chosen = policy["podSelector"]["matchLabels"].items()
    for place, template in PODS.items():
        assert chosen <= template["metadata"]["labels"].items(), place
    assert policy["policyTypes"] == ["Ingress"]
    selectors = [each for rule in policy["ingress"] for each in rule["from"]]
    assert len(selectors) >= 3
    for each in selectors:  # An empty one is everybody.
        assert any(selector.get("matchLabels") for selector in each.values()), each
    ports = [{port["port"] for port in rule.get("ports", [])} for rule in policy["ingress"]]
    assert ports == [set(), {8265}, {8080, 44217, 44227}]  # Its own pods, the operator, Prometheus.
    budget = document("policies.yaml", "PodDisruptionBudget")["spec"]
    # KubeRay labels each pod with its kind of node.
    assert budget["selector"]["matchLabels"] == dict(chosen) | {"ray.io/node-type": "head"}
    # Of two clusters' heads none may go: the number must stay out of reach.
    assert budget["minAvailable"] >= 100


def test_copies_of_shards_lie_below_the_root_of_their_volume(tmp_path):
    places = []
    for template in PODS.values():
        for container in template["spec"]["containers"]:
            env = {each["name"]: each.get("value") for each in container.get("env", [])}
            if place := env.get(FOLDER_VARIABLE):
                mounts = [PurePosixPath(each["mountPath"]) for each in container["volumeMounts"]]
                (mount,) = [each for each in mounts if PurePosixPath(place).is_relative_to(each)]
                places.append(PurePosixPath(place).relative_to(mount))
    assert len(places) == 3
    # As kubelet makes it with an fsGroup; of root's, where tests run as root too.
    volume = tmp_path / "volume"
    volume.mkdir()
    if os.getuid() == 0:
        os.chown(volume, 12345, 100)
    volume.chmod(0o2777)
    with pytest.raises(UserError, match="this user alone"):
        ShardCache(volume, 1)
    for place in places:
        ShardCache(volume / place, 1)
        assert stat.S_IMODE((volume / place).stat().st_mode) & 0o777 == 0o700


def test_pods_ask_for_the_disk_that_their_volumes_may_take():
    for place, template in PODS.items():
        volumes = [each["emptyDir"] for each in template["spec"].get("volumes", [])]
        on_disk = [each["sizeLimit"] for each in volumes if each.get("medium") != "Memory"]
        wanted = sum(int(size.removesuffix("Gi")) for size in on_disk)
        if wanted:
            (container,) = template["spec"]["containers"]
            for kind in ("requests", "limits"):
                size = container["resources"][kind]["ephemeral-storage"]
                assert int(size.removesuffix("Gi")) > wanted, (place, kind)


@pytest.mark.parametrize("place", [place for place in PODS if "GroupSpec" in place])
def test_nobody_moves_a_pod_of_a_cluster_to_save_a_node(place):
    annotations = PODS[place]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def test_secrets_are_references():
    for path in FILES:
        assert not [each for each in documents(path) if each["kind"] == "Secret"]
    for place, template in PODS.items():
        if "GroupSpec" in place:
            for container in template["spec"]["containers"]:
                assert container["envFrom"] == [{"secretRef": {"name": "lseg-env"}}]


def test_yaml_is_tidy():
    done = tool("yamllint", "--strict", str(Path(KUBERAY).parent))
    assert (done.returncode, done.stdout) == (0, "")
