"""Versions, aliases and the job over them, on a real MLflow registry in a sqlite file."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs.cli import main
from jobs.registry import BARE, run
from model.checkpoint import save_checkpoint
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from pipeline.checkpoints.environment import source_fingerprint
from pipeline.checkpoints.files import content_fingerprint
from pipeline.checkpoints.provenance import open_checkpoint
from pipeline.checkpoints.resolvers import pinned
from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig
from pipeline.inference.run import segment_photos
from pipeline.registry.config import RegistryJobConfig
from pipeline.registry.registry import (
    CANDIDATE,
    CHAMPION,
    REPLACED_TAG,
    ROLLED_BACK_TAG,
    ModelVersion,
    Registry,
    RegistryConfig,
)
from tests.support.mini_shards import tiny_model
from tests.support.mlflow_process import mlflow_is
from tests.support.mlflow_store import new_store

LABELS = ("wall", "traffic_light")


def write_checkpoint(folder: Path, seed: int) -> Path:
    """A folder as training leaves it, with the pickle that nobody else may get."""
    torch.manual_seed(seed)
    extra = {"run": {"name": "mix"}, "data": {"augment": {"base_px": 60, "crop_px": 48}}}
    texts = ("wall", "traffic light")
    save_checkpoint(folder, build_lseg(tiny_model(), 512), LABELS, extra, texts=texts)
    (folder / "trainer.pt").write_bytes(b"a pickle")
    sources = source_fingerprint() if seed == 1 else "0" * 16
    provenance = {"git_commit": "c" * 40, "source_fingerprint": sources}
    provenance |= {"manifest.ade20k": f"{seed:016x}"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "metrics.json").write_text(json.dumps({"step": 10 + seed, "val/miou": 0.25 * seed}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Checkpoints of seeds 1 and 2."""
    root = tmp_path_factory.mktemp("runs")
    return [write_checkpoint(root / f"step_{10 + seed:08d}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def filled(folders, tmp_path_factory):
    """Two versions, each of a run; tests put aliases on them and take them off."""
    place = tmp_path_factory.mktemp("registry")
    uri = new_store(place)
    with mlflow_is(uri):
        client = MlflowClient(uri)
        experiment = client.create_experiment("lseg", (place / "artifacts").as_uri())
        registry = Registry(uri)
        for number, folder in enumerate(folders, 1):
            run_id = client.create_run(experiment).info.run_id
            registry.register(
                folder,
                run_id=run_id,
                metrics={"val/miou": 0.25 * number, "val/ade20k/miou": 0.5},
                tags={"retrain": f"call-{number}", "api_key": "secret"},
            )
        yield registry


@pytest.fixture
def registry(filled):
    """Without aliases and what they left behind."""
    for alias in filled.aliases():
        filled.remove_alias(alias)
    for version in filled.versions():
        for tag in {REPLACED_TAG, ROLLED_BACK_TAG} & version.tags.keys():
            MlflowClient(filled.tracking_uri).delete_model_version_tag("lseg", version.version, tag)
    return filled


def same_weights(lseg: LSeg, folder: Path) -> bool:
    expected = LSeg.load(folder).state_dict()
    return all(torch.equal(value, expected[name]) for name, value in lseg.state_dict().items())


def test_nothing_is_registered_yet(filled):
    empty = Registry(filled.tracking_uri, "empty")
    assert empty.versions() == []
    assert empty.aliases() == {}
    assert empty.alias(CHAMPION) is None
    assert empty.find(run_id="x") is None
    with pytest.raises(UserError, match="not found"):
        empty.get("1")
    with pytest.raises(UserError, match="has no champion"):
        empty.roll_back()


def test_a_version_tells_where_it_comes_from(registry):
    second, first = registry.versions()
    assert (first.version, second.version) == ("1", "2")
    assert first.uri == registry.checkpoint("1") == registry.checkpoint(first) == "models:/lseg/1"
    assert first.fingerprints == {"ade20k": f"{1:016x}"}
    assert first.metrics == {"val/miou": 0.25, "val/ade20k/miou": 0.5}
    assert first.tags["backbone"] == "vit_tiny_patch16_224"
    assert first.tags["text_encoder"] == "stand-in"
    assert first.tags["git_commit"] == "c" * 40
    assert first.tags["step"] == "11"
    assert "api_key" not in first.tags


def test_the_run_shows_the_model_and_its_metrics(registry):
    version = registry.get("2")
    client = MlflowClient(registry.tracking_uri)
    run = client.get_run(version.run_id)
    assert run.data.metrics["val/miou"] == 0.5
    assert run.data.metrics["val_miou/ade20k"] == 0.5
    (output,) = {output.model_id for output in run.outputs.model_outputs}
    logged = client.get_logged_model(output)
    assert str(logged.status) == "READY"
    assert version.source == f"models:/{output}"
    assert logged.source_run_id == version.run_id
    assert "stand-in" in client.get_model_version("lseg", "2").description
    assert "champion" in client.get_registered_model("lseg").description


def test_found_by_run_and_by_tag(registry):
    second, first = registry.versions()
    assert registry.find(run_id=first.run_id) == first
    assert registry.find(tags={"retrain": "call-2"}) == second
    assert registry.find(run_id=first.run_id, tags={"retrain": "call-2"}) is None


def test_registering_again_gives_the_same_version_with_the_new_facts(registry, folders):
    first = registry.get("1")
    again = registry.register(
        folders[0], run_id=first.run_id, metrics={"eval/miou": 0.7}, tags={"more": "yes"}
    )
    assert again.version == "1"
    assert again.metrics == first.metrics | {"eval/miou": 0.7}
    assert again.tags == first.tags | {"more": "yes"}
    assert len(registry.versions()) == 2


def test_only_what_a_network_is_loaded_from_is_registered(registry):
    client = MlflowClient(registry.tracking_uri)
    model = client.get_logged_model(registry.get("1").source.removeprefix("models:/"))
    root = Path(model.artifact_location.removeprefix("file://"))
    names = {path.name for path in (root / "artifacts/checkpoint").iterdir()}
    assert names == {
        *("model.safetensors", "config.yaml", "labels.txt", "texts.txt"),
        *("provenance.json", "metrics.json"),
    }
    assert {path.name for path in (root / "code").iterdir()} == {"model", "pipeline"}
    everything = [path.name for path in root.rglob("*")]
    assert not [name for name in everything if name.endswith((".pkl", ".pt", ".pyc"))]
    requirements = (root / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    assert not [line for line in requirements if "/" in line or line.startswith("-")]


def test_aliases_move_in_one_step_and_the_champion_can_be_rolled_back(registry):
    registry.set_alias(CANDIDATE, "1")
    registry.set_alias(CHAMPION, "1")
    assert registry.alias(CHAMPION).aliases == (CANDIDATE, CHAMPION)
    registry.set_alias(CHAMPION, registry.get("2"))
    assert registry.aliases() == {CANDIDATE: "1", CHAMPION: "2"}
    assert registry.get("2").tags["replaced"] == "1"
    assert registry.roll_back().version == "1"
    assert registry.aliases()[CHAMPION] == "1"
    assert registry.get("2").tags["rolled_back"].endswith("Z")
    with pytest.raises(UserError, match="has no champion that replaced another"):
        registry.roll_back()
    # A champion that comes back replaces the one that is there now.
    registry.set_alias(CHAMPION, "2")
    registry.set_alias(CHAMPION, "1")
    assert registry.roll_back().version == "2"
    registry.remove_alias(CANDIDATE)
    registry.remove_alias("never-given")
    assert registry.alias(CANDIDATE) is None


def test_an_alias_of_no_version_changes_nothing(registry):
    registry.set_alias(CHAMPION, "1")
    with pytest.raises(UserError, match="not found"):
        registry.set_alias(CHAMPION, "77")
    assert registry.aliases() == {CHAMPION: "1"}


def test_by_version_and_by_alias_for_everything_that_takes_a_checkpoint(
    registry, folders, tmp_path
):
    registry.set_alias(CHAMPION, "2")
    for uri in ("models:/lseg/2", "models:/lseg@champion", "models:/lseg/latest"):
        assert pinned(uri) == "models:/lseg/2"
        assert same_weights(LSeg.load(uri), folders[1])
        _, provenance = open_checkpoint(uri)
        assert provenance.step == 12
        assert provenance.tags["manifest.ade20k"] == f"{2:016x}"
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(picture)
    config = PredictConfig(
        checkpoint="models:/lseg@champion", images=(str(picture),), out=str(tmp_path / "out")
    )
    assert segment_photos(config, lambda cpus: None).done == 1
    assert json.loads((tmp_path / "out/prediction.json").read_text())["checkpoint"] == (
        "models:/lseg/2"
    )
    # Another champion's answers do not mix with these.
    registry.set_alias(CHAMPION, "1")
    with pytest.raises(UserError, match="with another checkpoint"):
        segment_photos(config, lambda cpus: None)
    with pytest.raises(ModelError, match="alias nobody not found"):
        pinned("models:/lseg@nobody")
    assert pinned("runs/mine") == "runs/mine"


def without_content(registry: Registry, version: ModelVersion) -> None:
    """Takes away the tag that versions of an earlier program do not have."""
    MlflowClient(registry.tracking_uri).delete_model_version_tag("lseg", version.version, "content")


def test_a_version_from_before_is_known_again_by_its_files(folders, tmp_path, caplog):
    uri = new_store(tmp_path)
    with mlflow_is(uri):
        client = MlflowClient(uri)
        experiment = client.create_experiment("lseg", (tmp_path / "artifacts").as_uri())
        run_id = client.create_run(experiment).info.run_id
        registry = Registry(uri)
        first = registry.register(folders[0], run_id=run_id)
        without_content(registry, first)
        again = registry.register(folders[0], run_id=run_id)
        assert again.uri == first.uri
        assert again.tags["content"] == content_fingerprint(folders[0])
        without_content(registry, first)
        other = tmp_path / "other labels"
        shutil.copytree(folders[0], other)
        (other / "labels.txt").write_text("wall\nlamp\n")
        with caplog.at_level("INFO"):
            assert registry.register(other, run_id=run_id).version == "2"
        assert "models:/lseg/1 has these weights and other labels: a new version" in caplog.text
        # Where its files are gone it cannot be compared, and is left as it is.
        shutil.rmtree(tmp_path / "artifacts")
        assert registry.register(folders[0], run_id=run_id).version == "3"
        assert "its files cannot be fetched: a new version is made" in caplog.text


def test_the_same_weights_with_other_labels_are_another_version(folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders[0], other)
    (other / "labels.txt").write_text("wall\nlamp\n")
    uri = new_store(tmp_path)
    with mlflow_is(uri):
        fresh = Registry(uri, "fresh")
        # The experiment 0 of a new store has its artifacts in the current folder.
        place = (tmp_path / "artifacts").as_uri()
        experiment = MlflowClient(uri).create_experiment("lseg", place)
        run_id = MlflowClient(uri).create_run(experiment).info.run_id
        versions = [
            fresh.register(folder, run_id=run_id).version for folder in (folders[0], other, other)
        ]
    assert versions == ["1", "2", "2"]


def test_what_cannot_be_registered(registry, folders, tmp_path):
    run_id = registry.get("1").run_id
    with pytest.raises(UserError, match=r"checkpoint=.*no such file"):
        registry.register(tmp_path, run_id=run_id)
    with pytest.raises(UserError, match=r"Run with id=.*not found"):
        registry.register(folders[0], run_id="0" * 32)
    damaged = tmp_path / "damaged"
    shutil.copytree(folders[0], damaged)
    (damaged / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"provenance\.json is damaged"):
        registry.register(damaged, run_id=run_id)
    assert len(registry.versions()) == 2
    with pytest.raises(UserError, match=r"registry\.name='a/b'"):
        RegistryConfig(name="a/b")
    (damaged / "provenance.json").unlink()
    weights = load_file(damaged / "model.safetensors")
    weights["decoder.head.weight"][:] = float("nan")
    save_file(weights, damaged / "model.safetensors")
    with pytest.raises(ModelError, match=r"hold NaN or infinite numbers \(decoder\.head\.weight\)"):
        registry.register(damaged, run_id=run_id)
    assert len(registry.versions()) == 2


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with mlflow_is(uri), pytest.raises(UserError, match=f"registry {uri}, model lseg"):
            Registry(uri).versions()


def job(*words: object) -> int:
    return main(RegistryJobConfig, run, [str(word) for word in words], bare=BARE)


def test_the_job_registers_promotes_rolls_back_and_lists(filled, folders, capsys):
    where = (f"--tracking.uri={filled.tracking_uri}", "--registry.name=mine")
    assert job("register", folders[0], "--alias=candidate", *where) == 0
    assert "models:/mine/1  @candidate" in capsys.readouterr().out
    # The run that trained it is not known here; a run of its own is, from then on.
    assert job("register", folders[0], "--tags.why=again", *where) == 0
    assert job("register", folders[1], *where) == 0
    assert job("promote", "@candidate", *where) == 0
    assert job("promote", 2, *where) == 0
    capsys.readouterr()
    assert job(*where) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["models:/mine/2", "@champion"],
        ["models:/mine/1", "@candidate"],
    ]
    assert "val/miou 0.5000" in lines[0]
    # Two lists of sources can be told apart where `ray job submit` left no commit.
    assert lines[0].endswith(f"sources {'0' * 16} (others)")
    assert lines[1].endswith(f"sources {source_fingerprint()} (those of this checkout)")
    mine = Registry(filled.tracking_uri, "mine")
    assert mine.get("1").tags["why"] == "again"
    assert mine.get("1").tags["checkpoint"] == str(folders[0])
    assert job("roll_back", *where) == 0
    assert mine.aliases() == {"candidate": "1", "champion": "1"}
    assert job("remove_alias", "candidate", *where) == 0
    assert mine.aliases() == {"champion": "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote"], "version='': promote needs the version: `registry.py promote VERSION`"),
        (
            ["register"],
            "checkpoint='': register needs the checkpoint: `registry.py register CHECKPOINT`",
        ),
        (
            ["remove_alias"],
            "alias='': remove_alias needs the alias: `registry.py remove_alias ALIAS`",
        ),
        (["list", "--alias=champion"], "alias: list takes nothing"),
        (["roll_back", "--version=2"], "version: roll_back takes nothing"),
        (["roll_back", "2"], "version: roll_back takes nothing"),
        (["deploy", "2"], "action"),
        (["register", "x", "--alias=v1"], "alias='v1': must be letters"),
        (["register", "x", "--alias=Latest"], "alias='Latest': must be letters"),
        (["register", "x", "--alias=Prod!"], "alias='Prod!': must be letters"),
        (["promote", "77"], "77"),
        (["promote", "@nobody"], "version=@nobody: no version has this alias"),
        (["register", "nowhere"], "checkpoint=nowhere"),
    ],
)
def test_the_job_tells_what_is_wrong_with_its_words(filled, capsys, words, message):
    assert job(*words, f"--tracking.uri={filled.tracking_uri}") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_another_store_of_the_process_changes_nothing(folders, tmp_path, monkeypatch, name):
    """MLflow's client asks the process for what its arguments say."""
    uri, other = (new_store(tmp_path, f"{name}.db") for name in ("mlflow", "other"))
    with mlflow_is(other):
        monkeypatch.setenv(name, other)
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.create_experiment("lseg", (tmp_path / "artifacts").as_uri())
        registry, elsewhere = Registry(uri), Registry(other)
        assert elsewhere.versions() == []
        run_id = client.create_run(experiment).info.run_id
        version = registry.register(folders[0], run_id=run_id)
        registry.set_alias(CHAMPION, version)
        assert (open_checkpoint("models:/lseg@champion")[0] / "config.yaml").is_file()
        assert elsewhere.versions() == []
        assert [found.version for found in registry.versions()] == ["1"]
