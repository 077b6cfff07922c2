"""The Kubernetes files as kubectl renders them: schemas, what keeps a run alive and others out."""

import json
import re
import shlex
import shutil
from pathlib import Path, PurePosixPath

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.scripts.scripts import start

from jobs.cli import parse
from jobs.train_mix import JobConfig
from pipeline.registry.locks import LOCKED_EXIT_CODE
from pipeline.retraining.config import RetrainConfig
from pipeline.tracking.mlflow_run import MlflowUnavailable
from pipeline.training.config import TrainMixConfig
from tests.support.deployment import (
    ALL,
    AUTOSCALED,
    JOBS,
    KUBERAY,
    NAMESPACES,
    PLATFORMS,
    ROOT,
    WITH_CLUSTER,
    cluster,
    cluster_specs,
    documents,
    job_spec,
    of_kind,
    overlay,
    pinned,
    pod_templates,
    pods,
    project,
    rendered,
    tool,
)

RAY_KINDS = {"RayCluster", "RayJob", "RayCronJob"}
CORE_VERSION = "1.37"
IMAGE_FOLDER = "/home/ray/lseg/"
SERVE = KUBERAY.with_name("serve")
KINDS = {
    "namespace": ["Namespace", "NetworkPolicy", "PodDisruptionBudget", *["ServiceAccount"] * 3],
    "cluster": ["CronJob", "RayCluster"],
    "train": ["RayJob"],
    "check": ["RayJob"],
    "nightly": ["RayCronJob"],
}
CHOICES = {
    "eks": [["gpu-8", "efa", "kueue", "priority"], ["gpu-1", "dashboard", "on-demand"]],
    "gke": [
        ["gke", "gpu-1", "web-identity", "kueue", "dashboard"],
        ["gke", "gpu-8", "on-demand", "priority"],
    ],
    "on-prem": [
        ["on-prem", "gpu-8", "rdma", "web-identity"],
        ["on-prem", "gpu-1", "kueue", "dashboard", "priority"],
    ],
}
"""Parts that a platform may choose, besides those that it ships with."""
PLACES = {"shards": "s3://elsewhere/mix8", "storage": "s3://kept/runs"}
"""Places of data and runs that a platform may choose."""


def gib(size: str) -> int:
    return int(size.removesuffix("Gi"))


def amount(quantity: str | int) -> float:
    """A quantity of Kubernetes as a number."""
    units = {"m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30, "": 1.0}
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(quantity)).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]


def choose(folder: Path, platform: str, parts: list[str]) -> dict[str, list[dict]]:
    """The overlays of a platform with other parts chosen, in a copy of the files."""
    kuberay = folder / "kuberay"
    shutil.copytree(KUBERAY, kuberay)
    path = kuberay / "overlays" / platform / "choices" / "kustomization.yaml"
    choices = yaml.safe_load(path.read_text())
    choices["components"] = [f"../../../components/{part}" for part in parts]
    choices["images"][0] |= {"newName": "registry.example.org/lseg-ray", "newTag": "9.9"}
    choices["configMapGenerator"][0]["literals"] = [f"{key}={at}" for key, at in PLACES.items()]
    path.write_text(yaml.safe_dump(choices))
    names = ("cluster", "train", "check", "nightly")
    return {name: rendered(path.parents[1] / name) for name in names}


@pytest.fixture(scope="module")
def schemas(shared_data) -> dict[str, jsonschema.Draft7Validator]:
    folder = shared_data("reference/kuberay")
    names = {kind: f"{kind.lower()}-ray-v1.strict.schema.json" for kind in RAY_KINDS}
    read = {kind: json.loads((folder / name).read_text()) for kind, name in names.items()}
    return {kind: jsonschema.Draft7Validator(schema) for kind, schema in read.items()}


def check_against_kubernetes(docs: list[dict]) -> None:
    """All kinds of Kubernetes, and all pods."""
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]}
        for _, pod in pod_templates(docs)
    ]
    for each in [each for each in docs if each["kind"] not in RAY_KINDS] + pods:
        kubernetes_validate.validate(each, CORE_VERSION, strict=True)


def check_against_kuberay(docs: list[dict], schemas: dict[str, jsonschema.Draft7Validator]) -> None:
    for each in docs:
        if each["kind"] in RAY_KINDS:
            errors = schemas[each["kind"]].iter_errors(each)
            assert [f"{error.json_path}: {error.message}" for error in errors] == []


def job_words(docs: list[dict]) -> list[str]:
    """The command line of the job that an overlay submits, with the recipe of this checkout."""
    if any(each["kind"] == "CronJob" for each in docs):
        pod = of_kind(docs, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        return ["jobs/retrain.py", *shlex.split(env["LSEG_RETRAIN_ARGS"])]
    words = shlex.split(job_spec(docs)["entrypoint"])
    assert words[0] == "python"
    return [word.removeprefix(IMAGE_FOLDER) for word in words[1:]]


def config_of(words: list[str], monkeypatch) -> TrainMixConfig:
    monkeypatch.chdir(ROOT)
    return parse(RetrainConfig if words[0] == "jobs/retrain.py" else JobConfig, words[1:])


@pytest.mark.parametrize("name", ALL)
def test_overlay_renders_its_kinds_by_the_schemas_of_kubernetes(name):
    docs = overlay(name)
    assert sorted(each["kind"] for each in docs) == KINDS[name.partition("/")[2]]
    check_against_kubernetes(docs)
    for each in docs:
        # By which all that is ours is listed, and removed.
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "lseg", each["metadata"]
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "lseg"
    assert len(list(pod_templates(docs))) == (0 if name in NAMESPACES else 3)


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_overlay_follows_the_schemas_of_kuberay(name, schemas):
    check_against_kuberay(overlay(name), schemas)


@pytest.fixture(
    scope="module",
    params=[(platform, parts) for platform, choices in CHOICES.items() for parts in choices],
    ids=lambda param: "-".join([param[0], *param[1]]),
)
def chosen(request, tmp_path_factory) -> tuple[list[str], dict[str, list[dict]]]:
    """Other parts of a platform, and its overlays with them."""
    platform, parts = request.param
    return parts, choose(tmp_path_factory.mktemp("chosen"), platform, parts)


def test_other_parts_follow_the_schemas_of_kuberay(chosen, schemas):
    for docs in chosen[1].values():
        check_against_kuberay(docs, schemas)


def test_other_parts_can_be_chosen(chosen):
    parts, overlays = chosen
    for docs in overlays.values():
        check_against_kubernetes(docs)
        for _, pod in pod_templates(docs):
            images = {each["image"] for each in pod["spec"]["containers"]}
            assert images == {"registry.example.org/lseg-ray:9.9"}
        (spec,) = cluster_specs(docs)
        (group,) = spec["workerGroupSpecs"]
        worker = group["template"]["spec"]
        (container,) = worker["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        gpus = int(limits["nvidia.com/gpu"])
        assert group["maxReplicas"] * gpus == 8
        assert gpus == (1 if "gpu-1" in parts else 8)
        assert ("vpc.amazonaws.com/efa" in limits) is ("efa" in parts)
        assert ("rdma/hca_shared_devices_a" in limits) is ("rdma" in parts)
        if "on-demand" in parts:
            head = spec["headGroupSpec"]["template"]["spec"]
            # Where the head may be: on no spot node of any kind.
            assert worker["affinity"]["nodeAffinity"] == head["affinity"]["nodeAffinity"]
            (notice,) = [each for each in container["env"] if each["name"] == "LSEG_NOTICE_S"]
            assert notice["value"] == "100"
        for pod in (worker, spec["headGroupSpec"]["template"]["spec"]):
            env = {each["name"]: each.get("value") for each in pod["containers"][0].get("env", [])}
            path = env.get("AWS_WEB_IDENTITY_TOKEN_FILE")
            assert (path is not None) is ("web-identity" in parts)
            if path:
                mounts = {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
                assert str(PurePosixPath(path).parent) in mounts
            asks = {"RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST"}
            has_charts = "dashboard" in parts and pod is not worker
            assert asks & env.keys() == (asks if has_charts else set())
    labels = of_kind(overlays["train"], "RayJob")["metadata"]["labels"]
    assert ("kueue.x-k8s.io/queue-name" in labels) is ("kueue" in parts)


def test_a_training_fits_into_the_queue_that_the_example_makes(chosen):
    """Kueue lets nothing start that asks for more than the quota, or for what has none."""
    parts, overlays = chosen
    objects = {each["kind"]: each for each in documents(KUBERAY / "kueue" / "queues.yaml")}
    spec = objects["ClusterQueue"]["spec"]
    (group,) = spec["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {each["name"]: amount(each["nominalQuota"]) for each in flavor["resources"]}
    assert list(quota) == group["coveredResources"]
    assert flavor["name"] == objects["ResourceFlavor"]["metadata"]["name"]
    queue = objects["LocalQueue"]
    assert queue["spec"] == {"clusterQueue": objects["ClusterQueue"]["metadata"]["name"]}
    job = of_kind(overlays["train"], "RayJob")["metadata"]
    assert queue["metadata"]["namespace"] == job["namespace"]
    assert spec["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": job["namespace"]
    }
    if "kueue" in parts:
        assert job["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    (workers,) = cluster_specs(overlays["train"])[0]["workerGroupSpecs"]
    asked: dict[str, float] = {}
    for place, pod in pod_templates(overlays["train"]):
        count = workers["maxReplicas"] if "workerGroupSpecs" in place else 1
        for name, size in pod["spec"]["containers"][0]["resources"]["requests"].items():
            asked[name] = asked.get(name, 0) + count * amount(size)
    assert asked.keys() <= quota.keys()
    assert {name: size for name, size in asked.items() if size > quota[name]} == {}


def test_all_clusters_of_a_platform_have_one_pod_spec():
    for platform in ("eks", "gke", "on-prem"):
        names = [name for name in WITH_CLUSTER if name.startswith(f"{platform}/")]
        specs = [cluster(name) for name in names]
        assert len(specs) == 4
        workers = [spec["workerGroupSpecs"][0]["template"] for spec in specs]
        assert all(each == workers[0] for each in workers)
        heads = [spec["headGroupSpec"]["template"] for spec in specs]
        # But for Kubernetes' token, which the autoscaler alone needs.
        without = [{k: v for k, v in each["spec"].items() if "Token" not in k} for each in heads]
        assert all(each == without[0] for each in without)
        assert len({json.dumps(spec["rayVersion"]) for spec in specs}) == 1


def test_every_image_is_of_the_projects_version():
    found = [pod["spec"]["containers"] for pod in pods(*WITH_CLUSTER).values()]
    images = {each["image"] for containers in found for each in containers}
    name, version = "lseg-ray", project()["version"]
    assert images == {f"{name}:{version}"}
    # The lines that a user changes would render the same if they were not there.
    places = [KUBERAY / "overlays" / each / "choices" for each in PLATFORMS]
    for folder in [*places, *(SERVE / each for each in PLATFORMS)]:
        (file,) = documents(folder / "kustomization.yaml")
        assert file["images"] == [{"name": name, "newName": name, "newTag": version}], folder


def test_the_components_are_all_chosen_or_offered():
    there = {path.name for path in (KUBERAY / "components").iterdir()}
    tried = {part for choices in CHOICES.values() for parts in choices for part in parts}
    assert there == tried | {"assemble", "monitoring"}  # Which a namespace may choose.
    for platform, choices in CHOICES.items():
        path = KUBERAY / "overlays" / platform / "choices" / "kustomization.yaml"
        named = {part for part in there if re.search(rf"(/|#   |Or ){part}\b", path.read_text())}
        shipped = [
            name.rpartition("/")[2] for name in yaml.safe_load(path.read_text())["components"]
        ]
        assert named == {part for parts in choices for part in parts} | set(shipped), platform


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_cluster_is_of_the_pinned_ray_and_starts_it_with_options_that_exist(name):
    spec = cluster(name)
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        words = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        start.make_context("start", words)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_the_head_never_runs_where_workers_run(name):
    spec = cluster(name)

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


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_the_workers_of_a_cluster_are_in_one_zone_and_say_what_nccl_does(name):
    (group,) = cluster(name)["workerGroupSpecs"]
    pod = group["template"]["spec"]
    affinity = pod["affinity"].get("podAffinity")
    if name.startswith("on-prem/"):  # Its nodes may have no zone.
        assert affinity is None
    else:
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "topology.kubernetes.io/zone"
        assert term["matchLabelKeys"] == ["ray.io/cluster"]
        chosen = term["labelSelector"]["matchLabels"]
        # KubeRay sets the label of the kind of node; the pod must match its own rule.
        assert chosen == dict(group["template"]["metadata"]["labels"]) | {
            "ray.io/node-type": "worker"
        }
    (container,) = pod["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert env["NCCL_DEBUG"] == "WARN"
    assert env["NCCL_SOCKET_IFNAME"] == env["GLOO_SOCKET_IFNAME"] == "eth0"
    assert re.fullmatch(r"cuda>=\d+\.\d+", env["NVIDIA_REQUIRE_CUDA"])


@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_its_own_cluster_comes_back_and_cleans_up(name):
    docs = overlay(name)
    spec, kind = job_spec(docs), name.partition("/")[2]
    # The check is a patch of the training, and would be one without its own command.
    job = {"train": "train_mix", "check": "check_cluster", "nightly": "retrain"}[kind]
    assert job_words(docs)[0] == f"jobs/{job}.py"
    # Each time costs a cluster, whatever the exit code: that of the training with all its GPUs.
    assert spec["backoffLimit"] == {"train": 2, "check": 0, "nightly": 1}[kind]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    # A job waits for nodes that are yet to come.
    assert float(variables["LSEG_CLUSTER_WAIT_S"]) >= 600
    assert float(variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) >= 600
    deadline = spec.get("activeDeadlineSeconds")
    assert 3600 < deadline < 24 * 3600 if kind == "nightly" else deadline is None


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_every_pod_that_is_ended_leaves_time_for_a_checkpoint(name):
    spec = cluster(name)

    def hook(group) -> tuple[list[str], int]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:2] == ["python", f"{IMAGE_FOLDER}infra/before_stop.py"]
        return command[2:], pod["terminationGracePeriodSeconds"]

    (action, wait), grace_s = hook(spec["headGroupSpec"])
    # The longest that a stopped job may take, before the pod is killed.
    assert action == "stop_jobs"
    assert 120 < int(wait.removeprefix("--wait_s=")) < grace_s
    (group,) = spec["workerGroupSpecs"]
    (action, wait), grace_s = hook(group)
    assert action == "leave"
    assert 60 <= int(wait.removeprefix("--wait_s=")) < grace_s
    (container,) = group["template"]["spec"]["containers"]
    (notice,) = [each for each in container["env"] if each["name"] == "LSEG_NOTICE_S"]
    # GKE ends a pod of a spot node after 15 s, the spot notice of AWS comes 120 s before.
    assert 0 < int(notice["value"]) < (15 if name.startswith("gke/") else grace_s)


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_the_job_accepts_its_arguments_and_fits_into_its_cluster(name, monkeypatch):
    words = job_words(overlay(name))
    config = config_of(words, monkeypatch)
    for key in ("--run.storage", "--data.shards"):
        assert words.count(key) == 1
    assert config.run.storage.startswith("s3://")
    assert config.data.num_loaders == "auto"
    (group,) = cluster(name)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert group["maxReplicas"] * int(limits["cpu"]) >= config.logical_cpus
    assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) >= config.cluster.num_workers
    assert config.cluster.use_gpu
    if not cluster(name).get("enableInTreeAutoscaling"):  # All there is, from the start.
        assert len({group[key] for key in ("replicas", "minReplicas", "maxReplicas")}) == 1
        assert group["replicas"] * int(limits["nvidia.com/gpu"]) == config.cluster.num_workers
    volumes = {each["name"]: each["emptyDir"] for each in group["template"]["spec"]["volumes"]}
    assert gib(volumes["cache"]["sizeLimit"]) > config.data.cache_gib
    shm_bytes = gib(volumes["shm"]["sizeLimit"]) * 2**30
    store_bytes = int(group["rayStartParams"]["object-store-memory"])
    # Room for NCCL's buffers beside the object store, both in the pod's memory.
    assert 2**30 <= store_bytes <= 0.8 * shm_bytes
    assert shm_bytes <= gib(limits["memory"]) * 2**30 / 2


@pytest.mark.parametrize("name", AUTOSCALED)
def test_gpu_nodes_come_only_when_a_job_asks_for_them(name):
    spec = cluster(name)
    assert spec["enableInTreeAutoscaling"] is True
    options = spec["autoscalerOptions"]
    assert options["version"] == "v2"
    assert 60 <= options["idleTimeoutSeconds"] <= 1800
    assert {"cpu", "memory"} <= options["resources"]["limits"].keys()
    hardened = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert options["securityContext"] == hardened
    for group in spec["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


@pytest.mark.parametrize("name", AUTOSCALED)
def test_the_schedule_is_nightly(name):
    (spec,) = [each["spec"] for each in overlay(name) if "CronJob" in each["kind"]]
    assert re.fullmatch(r"[0-5]?\d ([01]?\d|2[0-3]) \* \* \*", spec["schedule"])
    assert spec["timeZone"] == "Etc/UTC"


@pytest.mark.parametrize("name", [n for n in ALL if n.endswith("/cluster")])
def test_the_cron_job_has_no_rights_and_knows_the_standing_cluster(name):
    spec = of_kind(overlay(name), "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [f"{IMAGE_FOLDER}infra/retrain.sh"]
    env = {each["name"]: each for each in container["env"]}
    cluster = of_kind(overlay(name), "RayCluster")["metadata"]["name"]
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
    # One bad night alerts until the next one, and no longer.
    assert spec["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] == 24 * 3600


def test_the_places_of_data_and_runs_are_those_of_choices(chosen):
    for name, docs in chosen[1].items():
        words = job_words(docs)
        for key, place in {"data.shards": "shards", "run.storage": "storage"}.items():
            assert words[words.index(f"--{key}") + 1] == PLACES[place], name
        assert set(re.findall(r"s3://[^\s\"']+", json.dumps(docs))) == set(PLACES.values()), name


def test_no_manifest_has_a_place_of_its_own():
    """A copy would stay as it is when a platform's `choices` change."""
    files = [path for folder in (KUBERAY, SERVE) for path in folder.rglob("*.yaml")]
    named = {path for path in files if "s3://" in path.read_text()}
    assert named == set((KUBERAY / "overlays").glob("*/choices/kustomization.yaml"))
    assert len(named) == 3
    for path in named:
        assert len(re.findall("s3://", path.read_text())) == len(PLACES), path
    (base,) = documents(KUBERAY / "base" / "places.yaml")
    assert base["data"] == dict.fromkeys(PLACES, "")


def test_every_file_is_part_of_an_overlay():
    """What no kustomization names would never be applied, and nobody would notice."""
    files = {path for path in KUBERAY.rglob("*.yaml") if path.name != "kustomization.yaml"}
    texts = {path: path.read_text() for path in KUBERAY.rglob("kustomization.yaml")}
    for path in files:
        assert path.name in texts[path.with_name("kustomization.yaml")], path
    assert len(files) > 10


def test_every_kustomization_says_what_it_is():
    """Kustomize takes what is left out for granted, and other programs do not."""
    api = "kustomize.config.k8s.io"
    kinds = {("Kustomization", f"{api}/v1beta1"), ("Component", f"{api}/v1alpha1")}
    files = [path for each in (KUBERAY, SERVE) for path in each.rglob("kustomization.yaml")]
    assert len(files) > 30
    for path in files:
        (file,) = documents(path)
        assert (file.get("kind"), file.get("apiVersion")) in kinds, path


def test_yaml_is_tidy():
    done = tool("yamllint", "--strict", str(Path(KUBERAY).parent))
    assert (done.returncode, done.stdout) == (0, "")
