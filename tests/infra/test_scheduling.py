"""Scheduling without Kubernetes: the script, the systemd units, the line for cron, the launcher."""

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from jobs.cli import build_parser, parse
from pipeline.registry.locks import LOCKED_EXIT_CODE
from pipeline.tracking.mlflow_run import MlflowUnavailable
from pipeline.training.config import TrainMixConfig
from tests.support.deployment import INFRA, ROOT, documents, project, tool

SCRIPT = INFRA / "retrain.sh"
UNITS = INFRA / "systemd"
INSTALLED = "/opt/lseg/"


def test_every_file_of_infra_is_led_to():
    """By the runbook, a page, or another file here: nobody would find it else."""
    files = [path for path in INFRA.rglob("*") if path.is_file() and path.name != ".env"]
    files = [path for path in files if path.suffix != ".pyc"]
    assert len(files) > 10
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = {path: path.read_text() for path in [*files, *pages]}
    for path in files:
        place = path.relative_to(ROOT)
        names = (path.name, f"{place.parent}/`")  # Or its folder, as `infra/systemd/`.
        others = [text for other, text in texts.items() if other != path]
        assert any(name in text for name in names for text in others), place


def test_the_runbook_names_what_there_is():
    text = (INFRA / "RUNBOOK.md").read_text()
    assert len(text.split()) < 1500  # A page to keep open.
    honest = re.search(r"\b(?:none|not|never)\b[^.]*\brun on a cluster\b[^.]*", text, re.I)
    assert honest
    assert re.search(r"\bimages?\b[^.]*\bbuilt\b[^.]*\btags?\b[^.]*\bpulled\b", honest[0])
    quoted = re.findall(r"`([^`\n]+)`", text)
    words = [word for each in quoted for word in each.split()]
    folders = ("infra/", "jobs/", "docs/", "tests/")
    paths = [word.partition(":")[0] for word in words if word.startswith(folders)]
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists() or path == "infra/.env", path  # Which the user makes.
    keys = set(build_parser(TrainMixConfig).get_defaults().keys())
    named = re.findall(r"`((?:train|data|run|cluster)\.\w+)`", text)
    assert len(named) > 5
    assert [key for key in named if key not in keys] == []
    metrics = re.findall(r"`((?:train|val)/\w+)`", text)
    assert len(metrics) > 5
    logged = texts_of_the_pipeline()
    assert [name for name in metrics if name not in logged] == []


def texts_of_the_pipeline() -> set[str]:
    """All constant texts of the code, in whatever room a metric is logged."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "pipeline").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {each.value for each in nodes if isinstance(each, ast.Constant)}


def test_every_compose_command_finds_its_file_and_may_be_piped():
    pages = [INFRA / "RUNBOOK.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = {path.name: path.read_text() for path in pages}
    texts["compose.yaml"] = (INFRA / "compose.yaml").read_text()
    texts["compose.gpu.yaml"] = (INFRA / "compose.gpu.yaml").read_text()
    commands = [
        (name, command.split())
        for name, text in texts.items()
        for command in re.findall(r"docker[ -]compose (?!config)([^`\n]+)", text)
    ]
    runbook = [words for name, words in commands if name == "RUNBOOK.md"]
    assert {"pg_dump", "pg_restore"} <= {word for words in runbook for word in words}
    for name, words in commands:
        assert words[0] == "-f", (name, words)
        files = [after for word, after in pairwise(words) if word == "-f"]
        assert [file for file in files if not (ROOT / file).is_file()] == [], (name, words)
        if "exec" in words and {"<", ">", "|"} & set(words):
            assert words[words.index("exec") + 1] == "-T", (name, words)


def run_script(tmp_path: Path, exit_code: int = 0, says: str = "", **variables: str):
    """retrain.sh with a `ray` that notes its arguments; its result and the arguments."""
    ray = tmp_path / "ray"
    noted = tmp_path / "arguments"
    ray.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" > {noted}\n'
        f"pwd > {tmp_path}/folder\necho {shlex.quote(says)}\nexit {exit_code}\n"
    )
    ray.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "LSEG_RAY": str(ray), "RAY_ADDRESS": "http://head:8265"}
    done = subprocess.run([SCRIPT], capture_output=True, text=True, env=env | variables, cwd="/")
    words = noted.read_text().split("\0")[:-1] if noted.exists() else []
    return done, words


SUBMITTED = "Job 'raysubmit_1' submitted successfully\n"
SUCCEEDED = f"{SUBMITTED}trained\n12:00 SUCC cli.py:67 -- Job 'raysubmit_1' succeeded\n"


def test_script_submits_the_job(tmp_path, monkeypatch):
    done, words = run_script(tmp_path, says=SUCCEEDED)
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert (tmp_path / "folder").read_text().strip() == str(ROOT)
    job = words.index("--")
    assert words[:4] == ["job", "submit", "--working-dir", "."]
    variables = json.loads(words[words.index("--runtime-env-json") + 1])["env_vars"]
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert float(variables["LSEG_CLUSTER_WAIT_S"]) >= 600
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", variables["LSEG_GIT_COMMIT"])
    assert words[job + 1 : job + 3] == ["python", "jobs/retrain.py"]
    monkeypatch.chdir(ROOT)
    arguments = words[job + 3 :]
    name = arguments.index("--registry.name")
    config = parse(TrainMixConfig, arguments[:name] + arguments[name + 2 :])
    assert config.run.storage == "s3://runs"


def test_script_takes_other_arguments(tmp_path):
    _, words = run_script(tmp_path, 0, SUCCEEDED, LSEG_RETRAIN_ARGS="--config a.yaml --margin 0.5")
    assert words[-4:] == ["--config", "a.yaml", "--margin", "0.5"]


def test_script_takes_arguments_of_several_lines_and_finds_its_checkout(tmp_path):
    variables = {
        "LSEG_RETRAIN_ARGS": "--config a.yaml\n  --margin 0.5\n\n--b 1\n",
        "CDPATH": "/tmp:/",
    }
    done, words = run_script(tmp_path, 0, SUCCEEDED, **variables)
    assert done.returncode == 0, done.stderr
    assert words[-6:] == ["--config", "a.yaml", "--margin", "0.5", "--b", "1"]
    assert (tmp_path / "folder").read_text().strip() == str(ROOT)


@pytest.mark.parametrize("code", [2, 69, 75, 143])
def test_script_passes_the_exit_code_of_the_job_on(tmp_path, code):
    says = f"{SUBMITTED}Job 'raysubmit_1' failed\n"
    says += f"Status message: Job entrypoint command failed with exit code {code}, last logs"
    assert run_script(tmp_path, 1, says)[0].returncode == code


def test_script_takes_no_other_end_for_a_success(tmp_path):
    # `ray job submit` ends with 0 in all of these cases.
    assert run_script(tmp_path, 0, f"{SUBMITTED}Job 'raysubmit_1' was stopped")[0].returncode == 143
    for code, says in (
        (0, "Status for job 'raysubmit_1': RUNNING"),
        (1, "RuntimeError: WebSocket"),
    ):
        done, _ = run_script(tmp_path, code, SUBMITTED + says)
        assert done.returncode == 69
        assert "ended before the job did" in done.stderr
    assert run_script(tmp_path, 0, "nothing was submitted")[0].returncode == 1


def test_script_fails_when_the_cluster_does(tmp_path):
    assert run_script(tmp_path, 1, "No available agent")[0].returncode == 1
    done, _ = run_script(tmp_path, RAY_ADDRESS="")
    assert done.returncode == 2
    assert "error: RAY_ADDRESS: must be the dashboard" in done.stderr
    done, _ = run_script(tmp_path, LSEG_RAY="/no/such/ray")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: LSEG_RAY=/no/such/ray: must be the ray command" in done.stderr


def test_shellcheck_finds_nothing():
    done = tool("shellcheck", str(SCRIPT), str(ROOT / ".ci" / "run"))
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(SCRIPT, os.X_OK)


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # pyright: ignore
    parser.read_string((UNITS / name).read_text())
    return parser


def test_service_calls_the_script_as_a_confined_user():
    service = unit("lseg-retrain.service")["Service"]
    assert service["ExecStart"] == INSTALLED + SCRIPT.relative_to(ROOT).as_posix()
    assert service["User"] not in ("", "root")
    assert service["Type"] == "oneshot"
    assert service["SuccessExitStatus"] == str(LOCKED_EXIT_CODE)
    assert service["Restart"] == "on-failure"  # Such as when MLflow does not answer.
    never = [int(code) for code in service["RestartPreventExitStatus"].split()]
    assert {2, 143} <= set(never)
    assert MlflowUnavailable.exit_code not in never
    for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces"):
        assert service[key] == "true", key
    assert service["ProtectSystem"] == "strict"
    assert "Environment" not in service  # Secrets are in a file that is not in the repository.


def test_timer_starts_the_service_and_makes_up_for_missed_nights():
    timer = unit("lseg-retrain.timer")
    assert timer["Timer"]["OnCalendar"] == "*-*-* 02:00:00"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert (UNITS / "lseg-retrain.service").is_file()  # A timer starts the service of its name.


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_accepts_the_units(tmp_path):
    for path in UNITS.glob("lseg-retrain.[st]*"):
        text = path.read_text().replace(f"{INSTALLED}infra/retrain.sh", "/bin/true")
        (tmp_path / path.name).write_text(text)
    files = sorted(str(path) for path in tmp_path.iterdir())
    assert len(files) == 2
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "lseg-retrain" in line]
    assert (done.returncode, ours) == (0, [])


def test_cron_line():
    lines = (UNITS / "lseg-retrain.cron").read_text().splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    found = re.fullmatch(r"0 2 \* \* \* (\w+) (.+)", line)
    assert found
    assert found[1] == unit("lseg-retrain.service")["Service"]["User"]
    assert "%" not in found[2]  # Which cron takes for the end of the line.
    env_file = unit("lseg-retrain.service")["Service"]["EnvironmentFile"]
    assert found[2] == f"set -a; . {env_file}; exec {INSTALLED}infra/retrain.sh"


def test_launcher_file_follows_rays_own_schema():
    (config,) = documents(INFRA / "ray" / "cluster.yaml")
    validate_config(prepare_config(config))  # As `ray up` does: defaults, then its schema.
    assert config["docker"]["image"] == f"lseg-ray:{project()['version']}"
    types = config["available_node_types"]
    # Left out, Ray takes an image of its own, whose driver cannot run CUDA 13.
    images = {each["node_config"]["ImageId"] for each in types.values()}
    assert all(image.startswith("ami-") for image in images)
    assert not images & set(DEFAULT_AMI.values())
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    profile = head["node_config"]["IamInstanceProfile"]["Name"]  # May start and end instances.
    for worker in types.values():
        assert worker["node_config"]["IamInstanceProfile"]["Name"] not in ("", profile)
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["max_workers"] <= config["max_workers"]


def test_launcher_starts_ray_with_options_that_exist():
    (config,) = documents(INFRA / "ray" / "cluster.yaml")
    options = config["docker"]["run_options"]
    assert any("RAY_AUTH_MODE=token" in option for option in options)
    assert any(re.search(r"MLFLOW_TRACKING_URI=http://[^@]+$", option) for option in options)
    # Where Ray looks for its token by itself.
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, command = config[key]
        assert stop == "ray stop"
        words = shlex.split(command)
        assert words[:2] == ["ray", "start"]
        options = start.make_context("start", words[2:]).params
        assert options["head"] is key.startswith("head")
