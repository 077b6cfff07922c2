"""Prometheus' rules, Grafana's board and the monitors of Kubernetes: they agree with each other.

What they ask for is what the code shows; that every question has an answer while a training runs is
looked at by `tests/integration/watched_training.py`.
"""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline import monitoring
from tests.support import operator_schemas
from tests.support.deployment import (
    INFRA,
    KUBERAY,
    NAMESPACES,
    ROOT,
    WITH_CLUSTER,
    cluster,
    documents,
    rendered,
)

PROMETHEUS = INFRA / "prometheus"
RULE_FILES = [PROMETHEUS / "rules.yaml", PROMETHEUS / "rules-kubernetes.yaml"]
BOARD = json.loads((INFRA / "grafana" / "boards" / "lseg.json").read_text())
CASES = ROOT / "tests" / "infra" / "alerts.yaml"
METRIC = re.compile(r"\b(?:(?:ray_|lseg:|kube_|kuberay_)[a-z0-9_:]+|up|ALERTS)\b")
OF_RAY = {
    "ray_node_cpu_count",
    "ray_node_cpu_utilization",
    "ray_node_disk_utilization_percentage",
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_node_network_receive_speed",
    "ray_object_store_used_memory",
}
OF_KUBERAY = {"kuberay_job_deployment_status"}
OF_PROMETHEUS = {"up", "ALERTS"}


def rules(files=RULE_FILES) -> list[dict]:
    return [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def board_expressions() -> list[str]:
    found = [each["expr"] for panel in BOARD["panels"] for each in panel.get("targets", [])]
    return found + [each["expr"] for each in BOARD["annotations"]["list"]]


def names_in(expression: str) -> set[str]:
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))


def test_board_and_rules_ask_for_what_there_is_and_for_all_of_it():
    ours = {f"ray_{metric.name}" for metric in monitoring.ALL}
    asked = [*board_expressions(), *(rule["expr"] for rule in rules())]
    used = {name for expression in asked for name in names_in(expression)}
    known = ours | OF_RAY | OF_KUBERAY | OF_PROMETHEUS | RECORDED
    assert {name for name in used - known if not name.startswith("kube_")} == set()
    assert known - used == set()


def test_each_panel_says_what_it_shows_from_the_chosen_prometheus():
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "$source"}
        assert panel["targets"], panel["title"]
    ends = [panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels]
    assert max(ends) == 24


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("grafana/boards/lseg.json", operator_schemas.BOARD),
        ("grafana/provisioning/datasources/prometheus.yaml", operator_schemas.SOURCES),
        ("grafana/provisioning/dashboards/boards.yaml", operator_schemas.PROVIDERS),
    ],
)
def test_grafana_reads_every_key(path, schema):
    # JSON is YAML, too.
    check(schema, yaml.safe_load((INFRA / path).read_text()))


@pytest.mark.parametrize("folder", ["components/monitoring", "kueue"])
def test_operators_read_every_key(folder):
    files = [path for path in (KUBERAY / folder).glob("*.yaml") if path.stem != "kustomization"]
    objects = [each for path in files for each in documents(path)]
    assert objects
    for each in objects:
        check(operator_schemas.BY_KIND[each["kind"]], each)


def check(schema: operator_schemas.Schema, given: Any) -> None:
    """Fails over what a schema does not allow."""
    found = Draft202012Validator(schema).iter_errors(given)
    assert [f"{error.json_path}: {error.message}"[:300] for error in found] == []


def test_the_runbook_explains_every_alert():
    told = re.findall(r"^\| `(Lseg\w+)`", (INFRA / "ALERTS.md").read_text(), re.M)
    assert sorted(told) == sorted(ALERTS)


def test_every_alert_has_a_case_in_which_it_fires():
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fires = [
        each["alertname"]
        for case in cases
        for each in case["alert_rule_test"]
        if each["exp_alerts"]
    ]
    assert set(fires) == set(ALERTS)
    quiet = {
        each["alertname"]
        for case in cases
        for each in case["alert_rule_test"]
        if not each["exp_alerts"]
    }
    assert quiet == set(ALERTS)


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (apt install prometheus)")
def test_each_alert_fires_when_it_should_and_not_before():
    files = [str(path) for path in RULE_FILES]
    for words in (
        ["check", "rules", *files],
        ["check", "config", str(PROMETHEUS / "prometheus.yaml")],
        ["check", "config", str(PROMETHEUS / "local.yaml")],
        ["test", "rules", str(CASES)],
    ):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_gets_the_same_rules():
    (found,) = documents(KUBERAY / "components" / "monitoring" / "rules.yaml")
    groups = [yaml.safe_load(path.read_text())["groups"] for path in RULE_FILES]
    assert found["kind"] == "PrometheusRule"
    assert found["spec"] == {"groups": [group for each in groups for group in each]}


def test_the_operator_fetches_from_ports_that_may_be_reached():
    (monitor,) = documents(KUBERAY / "components" / "monitoring" / "podmonitor.yaml")
    spec = monitor["spec"]
    assert spec["selector"] == {"matchLabels": {"app.kubernetes.io/part-of": "lseg"}}
    ports = {each["port"] for each in spec["podMetricsEndpoints"]}
    # As KubeRay's own samples name them.
    assert ports == {"metrics", "as-metrics", "dash-metrics"}
    for name in WITH_CLUSTER:
        (container,) = cluster(name)["headGroupSpec"]["template"]["spec"]["containers"]
        named = {each["name"]: each["containerPort"] for each in container["ports"]}
        # Those that the policy of the namespace opens to Prometheus.
        assert [named[port] for port in sorted(ports)] == [44217, 44227, 8080], name
    component = yaml.safe_load(
        (KUBERAY / "components" / "monitoring" / "kustomization.yaml").read_text()
    )
    assert component["kind"] == "Component"
    assert set(component["resources"]) == {"podmonitor.yaml", "operator.yaml", "rules.yaml"}


@pytest.mark.parametrize("name", NAMESPACES)
def test_monitors_and_rules_are_where_the_pods_are(name, tmp_path):
    """A PodMonitor of another namespace would find no pod, and nothing would say so."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    path = tmp_path / "kuberay" / "overlays" / name / "kustomization.yaml"
    offered = "#   components:\n#     - ../../../components/monitoring\n"
    text = path.read_text()
    assert offered in text
    path.write_text(text.replace(offered, offered.replace("#   ", "").replace("# ", "")))
    docs = rendered(path.parent)
    kinds = {each["kind"] for each in docs}
    assert {"PodMonitor", "ServiceMonitor", "PrometheusRule"} <= kinds
    for each in docs:
        if each["kind"] != "Namespace":
            assert each["metadata"].get("namespace") == "lseg", each["kind"]


def test_the_operator_of_kuberay_says_which_job_failed():
    (monitor,) = documents(KUBERAY / "components" / "monitoring" / "operator.yaml")
    chosen = monitor["spec"]["selector"]["matchLabels"]
    policies = documents(KUBERAY / "namespace" / "policies.yaml")
    # The same operator that may reach the dashboards.
    assert chosen in [
        each.get("podSelector", {}).get("matchLabels")
        for policy in policies
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"]["ingress"]
        for each in rule["from"]
    ]
    # Without its own labels the job's namespace would be `exported_namespace`.
    assert all(each["honorLabels"] for each in monitor["spec"]["endpoints"])
    assert 'namespace="lseg"' in ALERTS["LsegRayJobFailed"]["expr"]


def test_prometheus_of_compose_fetches_from_every_service_of_ray():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    jobs = {each["job_name"]: each for each in config["scrape_configs"]}
    (nodes,) = jobs["ray"]["dns_sd_configs"]
    assert set(nodes["names"]) == {name for name in services if name.startswith("ray-")}
    for name in nodes["names"]:
        assert f"--metrics-export-port={nodes['port']}" in services[name]["command"]
    (dashboard,) = jobs["ray-dashboard"]["static_configs"]
    assert dashboard["targets"] == ["ray-head:44227"]
    assert jobs["prometheus"]["static_configs"] == [{"targets": ["127.0.0.1:9090"]}]
    assert config["rule_files"] == ["rules.yaml"]
    environment = services["ray-head"]["environment"]
    source = INFRA / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    (told,) = yaml.safe_load(source.read_text())["datasources"]
    assert environment["RAY_PROMETHEUS_HOST"] == told["url"] == "http://prometheus:9090"
    assert environment["RAY_PROMETHEUS_NAME"] == told["name"]
    assert "127.0.0.1:3000:3000" in services["grafana"]["ports"]
    assert environment["RAY_GRAFANA_HOST"] == "http://grafana:3000"


def test_prometheus_of_one_machine_soon_sees_what_starts_and_ends():
    config = yaml.safe_load((PROMETHEUS / "local.yaml").read_text())
    ((found,),) = (each["file_sd_configs"] for each in config["scrape_configs"])
    assert found["files"] == [
        "/tmp/ray/prom_metrics_service_discovery.json",
        "/tmp/ray/lseg-metrics-*.json",
    ]
    # By default every five minutes, in which a short training comes and goes.
    assert found["refresh_interval"] == "15s"
    assert config["rule_files"] == ["rules.yaml"]
    for each in (config, yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())):
        assert each["global"] == {"scrape_interval": "15s", "evaluation_interval": "15s"}


def test_grafana_finds_the_board_and_those_of_ray():
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    head, grafana = compose["services"]["ray-head"], compose["services"]["grafana"]
    targets = {each["source"]: each["target"] for each in grafana["configs"]}
    files = {name: INFRA / compose["configs"][name]["file"] for name in targets}
    assert all(path.is_file() for path in files.values())
    folders = {each["options"]["path"] for each in yaml.safe_load(
        files["grafana-boards"].read_text())["providers"]}  # fmt: skip
    assert targets["board"].rpartition("/")[0] in folders
    written = head["environment"]["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"]
    assert head["volumes"] == [f"ray-boards:{written}"]
    (shared,) = [each for each in grafana["volumes"] if each.startswith("ray-boards:")]
    assert shared.split(":")[1] in folders
