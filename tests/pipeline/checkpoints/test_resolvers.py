"""Checkpoints from a real S3 server and a real MLflow registry, as a user asks for them."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import mlflow
import pytest
import ray
import torch
from mlflow import MlflowClient

from model.checkpoint import save_checkpoint
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from pipeline.checkpoints import resolvers
from pipeline.checkpoints.whole import write_digests
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.mini_shards import tiny_model
from tests.support.mlflow_store import new_store

ROOT = Path(__file__).resolve().parents[3]
LABELS = ("wall", "traffic_light")
TEXTS = ("wall", "traffic light")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint folder, with a pickle as training leaves one."""
    folder = tmp_path_factory.mktemp("saved") / "step_00000004"
    torch.manual_seed(0)
    save_checkpoint(folder, build_lseg(tiny_model(), 512), LABELS, texts=TEXTS)
    (folder / "trainer.pt").write_bytes(b"a pickle")
    return folder


def upload(saved: Path, uri: str) -> None:
    storage = open_storage(uri)
    for path in saved.iterdir():
        storage.upload(path.name, path)


def assert_is(lseg: LSeg, saved: Path) -> None:
    expected = LSeg.load(saved)
    assert lseg.labels == expected.labels == TEXTS
    for name, value in expected.state_dict().items():
        assert torch.equal(lseg.state_dict()[name], value), name


def test_from_s3_without_its_pickle(saved, s3_bucket, monkeypatch):
    monkeypatch.setattr(resolvers, "PART_MIB", 0.01)  # in many parts
    upload(saved, f"{s3_bucket}/runs/mine/step_00000004")
    assert_is(LSeg.load(f"{s3_bucket}/runs/mine/step_00000004"), saved)
    folder = resolvers.fetch_s3(f"{s3_bucket}/runs/mine/step_00000004")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "labels.txt",
        "texts.txt",
    }


def test_what_was_cut_in_s3_is_named_by_its_record(saved, s3_bucket, tmp_path):
    folder = tmp_path / "recorded"
    shutil.copytree(saved, folder)
    write_digests(folder)
    uri = f"{s3_bucket}/runs/cut/step_00000004"
    upload(folder, uri)
    assert LSeg.load(uri).labels == TEXTS
    open_storage(uri).write("texts.txt", b"wall\nsky\n")
    with pytest.raises(ModelError, match=r"texts\.txt: has 9 bytes and had 19, says files\.json"):
        LSeg.load(uri)


def test_what_is_not_in_s3_is_named(s3_bucket):
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml and no model\.safetensors"):
        LSeg.load(f"{s3_bucket}/nothing")
    with pytest.raises(UserError, match="bucket must exist"):
        LSeg.load("s3://no-such-bucket-here/x")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> MlflowClient:
    """A registry in a sqlite file, with the model `lseg` in it and no version of it."""
    uri = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    client = MlflowClient()
    client.create_experiment("lseg", artifact_location=(tmp_path / "artifacts").as_uri())
    client.create_registered_model("lseg")
    return client


def run_with(client: MlflowClient, saved: Path, artifact_path: str) -> str:
    """A run that holds the checkpoint among its artifacts; its id."""
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    run_id = client.create_run(experiment.experiment_id).info.run_id
    client.log_artifacts(run_id, str(saved), artifact_path)
    return run_id


def test_from_the_registry_by_alias_number_and_latest(saved, registry):
    run_id = run_with(registry, saved, "best/checkpoint")
    for source in (f"runs:/{run_id}/best", f"runs:/{run_id}/best/checkpoint"):
        version = registry.create_model_version("lseg", source, run_id)
    registry.set_registered_model_alias("lseg", "champion", "1")
    assert version.version == "2" or version.version == 2
    for name in ("lseg@champion", "lseg/1", "lseg/2", "lseg/latest"):
        assert_is(LSeg.load(f"models:/{name}"), saved)


def test_a_version_may_lie_in_s3(saved, registry, s3_bucket):
    upload(saved, f"{s3_bucket}/runs/mine/step_00000004")
    registry.create_model_version("lseg", f"{s3_bucket}/runs/mine/step_00000004")
    registry.set_registered_model_alias("lseg", "champion", "1")
    assert_is(LSeg.load("models:/lseg@champion"), saved)


def test_files_that_mlflow_fetches_are_only_those_that_are_read(saved, registry):
    run_id = run_with(registry, saved, "best/checkpoint")
    folder = resolvers._fetch_artifacts("models:/lseg/1", f"runs:/{run_id}/best")
    assert "trainer.pt" not in {path.name for path in folder.rglob("*")}
    assert_is(LSeg.load(folder), saved)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/lseg@champion", "alias champion not found"),
        ("models:/lseg/7", "not found"),
        ("models:/nothing@champion", "not found"),
        ("models:/lseg/latest", "no version of lseg"),
        ("models:/lseg", "must be models:/NAME@ALIAS"),
    ],
)
def test_what_is_not_in_the_registry_is_named(registry, uri, message):
    with pytest.raises(ModelError, match=f"(?i){message}"):
        LSeg.load(uri)


def test_a_version_without_a_checkpoint_is_named(registry, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("x")
    run_id = run_with(registry, tmp_path / "other", "other")
    registry.create_model_version("lseg", f"runs:/{run_id}/other", run_id)
    with pytest.raises(FileNotFoundError, match="must be a checkpoint of this project"):
        LSeg.load("models:/lseg/1")


SESSION = """
from model.lseg import LSeg
import sys
assert not any(name.split(".")[0] == "pipeline" for name in sys.modules)
print(LSeg.load(sys.argv[1]).labels)
"""


@pytest.mark.parametrize("installed", [True, False])
def test_a_plain_python_session_finds_s3_where_the_project_is_installed(
    saved, s3_bucket, tmp_path, installed
):
    """The entry points of pyproject.toml, as an installation writes them down."""
    upload(saved, f"{s3_bucket}/mine")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    metadata = tmp_path / "lseg_ray-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lseg-ray\nVersion: 9\n")
    lines = [f"{name} = {target}" for name, target in declared["lseg.resolvers"].items()]
    content = "[lseg.resolvers]\n" + "\n".join(lines) if installed else ""
    # Found first, it stands for whatever version of the project is installed here.
    (metadata / "entry_points.txt").write_text(content + "\n")
    done = subprocess.run(
        [sys.executable, "-c", SESSION, f"{s3_bucket}/mine"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(TEXTS)
    else:
        assert "import pipeline.checkpoints.resolvers before" in done.stderr


PASSWORD = "a-password-of-mlflow"


def test_a_worker_gets_addresses_from_ray_and_logins_from_its_surroundings(
    local_ray, registry, monkeypatch
):
    """Ray shows runtime environments in its dashboard and logs."""
    for name, value in (("USERNAME", "me"), ("PASSWORD", PASSWORD), ("TOKEN", PASSWORD)):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    runtime_env = resolvers.worker_runtime_env("models:/lseg@champion")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert runtime_env == {"env_vars": {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}}
    assert runtime_env is not None
    remote = ray.remote(runtime_env=runtime_env)(lambda: dict(os.environ))
    there = ray.get(remote.remote())
    assert there["MLFLOW_REGISTRY_URI"] == uri
    # Set before that Ray was started, and in no runtime environment.
    assert there["AWS_SECRET_ACCESS_KEY"] == os.environ["AWS_SECRET_ACCESS_KEY"]


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_an_address_with_a_login_in_it_is_not_given_to_ray(registry, monkeypatch, name):
    monkeypatch.setenv(name, f"http://me:{PASSWORD}@mlflow:5000")
    found = resolvers.worker_runtime_env("models:/lseg/1")
    assert found is not None
    assert name not in found["env_vars"] | resolvers.mlflow_variables()
    assert PASSWORD not in str(found)
