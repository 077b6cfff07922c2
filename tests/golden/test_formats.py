"""Files that revision f9ab2ff wrote, read by the code of today; see `formats/README.md`."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from jobs.cli import main
from jobs.sweep import build_trial
from jobs.track import ReplayConfig, replay_job
from model.lseg import LSeg
from pipeline.checkpoints.files import checkpoint_fingerprint
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.ingest.stream import SampleReader, open_corpus
from pipeline.data.taxonomy import IGNORE, universal
from pipeline.errors import UserError
from pipeline.registry.registry import Registry
from pipeline.retraining.data import DataState
from pipeline.retraining.state import StateFile
from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.settings import check_settings
from pipeline.sweep.trials import grid_trials
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker
from pipeline.training.driver.launch import plan_run, train
from tests.golden.formats import make
from tests.support.mini_shards import MiniShards, tiny_model
from tests.support.mlflow_store import new_store
from tests.support.ray_fixtures import run_command

FORMATS = Path(__file__).parent / "formats"
CHECKPOINT = FORMATS / "run" / "step_00000003"
REGISTERED = json.loads((FORMATS / "registered.json").read_text())
RUN_NAME = "old-de500434"


@pytest.mark.parametrize(("split", "size"), [("train", 3), ("val", 1)])
def test_shards(split, size):
    corpus = open_corpus(str(FORMATS / "shards"), split)
    assert corpus.sizes == {"ade20k": size, "cityscapes": size}
    reader = SampleReader(corpus)
    for name, manifest in corpus.manifests.items():
        counts = np.zeros(len(universal().classes), np.int64)
        for index in range(size):
            image, label = reader.read(name, index)  # Its checksum is looked at.
            assert image.shape[:2] == label.shape
            counts += np.bincount(label[label != IGNORE], minlength=len(counts))
        assert tuple(counts) == manifest.class_pixels
        kind = {"train": "manifest", "val": "validation"}[split]
        # The fingerprint by which a re-training sees whether its data changed.
        assert REGISTERED["version"]["tags"][f"{kind}.{name}"] == manifest.fingerprint


def test_a_checkpoint_gives_its_weights_and_its_past():
    lseg = LSeg.load(CHECKPOINT)
    weights = load_file(CHECKPOINT / "model.safetensors")
    state = lseg.state_dict()
    assert {name: state[name].shape for name in weights} == {k: v.shape for k, v in weights.items()}
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert list(lseg.labels) == (CHECKPOINT / "texts.txt").read_text().splitlines()
    with torch.no_grad():
        text = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
        assert lseg.eval()(torch.zeros(1, 3, 48, 48), text).isfinite().all()
    assert checkpoint_fingerprint(CHECKPOINT) == REGISTERED["version"]["tags"]["weights"]
    provenance = read_provenance(CHECKPOINT)
    assert list(provenance.labels) == (CHECKPOINT / "labels.txt").read_text().splitlines()
    assert len(provenance.labels) == 28
    assert provenance.is_known
    assert (provenance.step, provenance.datasets) == (3, ("ade20k", "cityscapes"))
    assert provenance.tags["mlflow_run_id"] == REGISTERED["version"]["run_id"]


@pytest.mark.slow  # It starts a worker.
def test_a_run_goes_on_from_its_checkpoint(local_ray, tmp_path):
    """Through Ray Train's snapshot, the optimiser, the order of the samples and the best model."""
    shutil.copytree(FORMATS / "run", tmp_path / "runs" / RUN_NAME)
    mini = MiniShards(FORMATS / "shards", new_store(tmp_path))
    settings = {"validate_every": 5, "checkpoint_every": 5}
    config = mini.config(tmp_path / "runs", RUN_NAME, steps=5, **settings)
    size = {"patch_size": 8, "depth": 4, "embed_dim": 8, "num_heads": 2, "img_size": 48}
    backbone = replace(tiny_model().backbone, kwargs=size)
    config = replace(config, model=tiny_model(backbone=backbone, features=4))
    outcome = train(plan_run(config))
    assert outcome.metrics["step"] == 5
    order = (Path(outcome.checkpoint) / "order.txt").read_text().splitlines()
    assert order[:3] == (CHECKPOINT / "order.txt").read_text().splitlines()
    assert len(order) == 5
    # The warm-up of a new run would begin anew: the schedule and the momentum are those stored.
    before, after = (
        torch.load(f"{folder}/trainer.pt", weights_only=True)["optimizer"]["state"]
        for folder in (CHECKPOINT, outcome.checkpoint)
    )
    assert before.keys() == after.keys()
    best = json.loads((tmp_path / "runs" / RUN_NAME / "best.json").read_text())
    assert (best["step"], best["metric"]) == (3, "val/miou")  # 0.0 is not beaten by 0.0.
    other = replace(config, run=replace(config.run, seed=4))
    with pytest.raises(UserError, match=r"run\.seed"):
        train(plan_run(other))


def history(client: MlflowClient) -> dict[str, list[tuple[int, float, int]]]:
    """Steps, values and times of the metrics of the one run of the spill file."""
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "old"
    assert run.data.params == {"train.lr": "0.01", "data.shards": "/shards"}
    assert run.data.tags["git_commit"] == "0" * 40
    return {
        key: [
            (m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }


def spilled() -> dict[str, list[tuple[int, float, int]]]:
    """The same as the file has it."""
    lines = (FORMATS / "spill" / "tracking-old.jsonl").read_text().splitlines()
    found: dict[str, list[tuple[int, float, int]]] = {}
    for record in map(json.loads, lines):
        for key, value in record["values"].items() if record["kind"] == "metrics" else ():
            found.setdefault(key, []).append((record["step"], value, record["time_ms"]))
    return found


def test_a_spill_file_is_replayed(tmp_path, capsys):
    shutil.copytree(FORMATS / "spill", tmp_path / "run")
    uri = new_store(tmp_path)
    words = ["--replay", str(tmp_path / "run"), "--tracking.uri", uri]
    assert main(ReplayConfig, replay_job, words) == 0
    assert "(6 metric values)" in capsys.readouterr().out
    assert history(MlflowClient(uri)) == spilled()
    assert not (tmp_path / "run" / "tracking-old.jsonl").exists()


def test_a_run_goes_on_with_its_spill_file(tmp_path):
    shutil.copytree(FORMATS / "spill", tmp_path / "run")
    uri = new_store(tmp_path)
    path = tmp_path / "run" / "tracking-old.jsonl"
    tracker = Tracker.start(TrackingConfig(uri=uri), run_name="old", spill_path=path)
    tracker.log_metrics({"train/loss": 0.25}, 4)
    tracker.close("FINISHED", 60.0)
    found = history(MlflowClient(uri))
    assert found["train/loss"].pop()[:2] == (4, 0.25)
    assert found == spilled()


def test_the_results_of_a_sweep_are_those_of_its_trials(tmp_path):
    shutil.copytree(FORMATS / "sweep", tmp_path / "old-sweep")
    config = SweepConfig(
        name="old-sweep",
        base="formats/sweep/recipe.yaml",
        metric="val/pixel_accuracy",
        storage=str(tmp_path),
        grid={"train.lr": [0.01, 0.02]},
    )
    storage = open_storage(str(tmp_path / "old-sweep"))
    found, trials = results.read_all(storage), grid_trials(config)
    assert found.keys() == {trial.name for trial in trials}
    assert [found[trial.name].params for trial in trials] == [
        {"train.lr": 0.01},
        {"train.lr": 0.02},
    ]
    assert all(result.is_done for result in found.values())
    assert all(result.value("step") == 3 for result in found.values())
    text = (FORMATS / "sweep" / "recipe.yaml").read_text()
    check_settings(config, trials, functools.partial(build_trial, config, text), storage)
    longer = text.replace("steps: 3", "steps: 4")
    with pytest.raises(UserError, match=r"train\.steps 3, now 4"):
        check_settings(config, trials, functools.partial(build_trial, config, longer), storage)


def test_the_state_of_a_re_training():
    attempt = StateFile(open_storage(str(FORMATS / "retraining"))).read()
    assert attempt is not None
    assert (attempt.phase, attempt.candidate, attempt.run_name) == ("finished", "1", RUN_NAME)
    assert attempt.decision["promote"] is True
    (path,) = (FORMATS / "retraining" / "decisions").iterdir()
    assert json.loads(path.read_text())["attempt"]["id"] == attempt.id
    # The tag by which the next call knows that this data was tried already.
    key = DataState(attempt.training, attempt.validation).key
    assert REGISTERED["version"]["tags"]["retrain.data"] == key


def test_what_the_registry_knows_of_a_version(tmp_path):
    """The version is told to MLflow as it was by the old code; its files are no matter here."""
    uri = new_store(tmp_path)
    registry, client = Registry(uri, "old"), MlflowClient(uri)
    model, old = REGISTERED["registered_model"], REGISTERED["version"]
    run = client.create_run("0")
    client.create_registered_model("old", model["tags"], model["description"])
    client.create_model_version("old", str(tmp_path), run.info.run_id, tags=old["tags"])
    client.set_registered_model_alias("old", "champion", "1")
    champion = registry.alias("champion")
    assert champion is not None
    assert (champion.version, champion.aliases) == ("1", ("champion",))
    assert champion.tags == old["tags"]
    assert champion.fingerprints == {
        "ade20k": "53ff2092ad2b7db7",
        "cityscapes": "39930803f0e0d6aa",
    }
    assert registry.state_folder() == model["tags"]["retrain.state"]
    assert registry.find(tags={"weights": checkpoint_fingerprint(CHECKPOINT)}) == champion


@pytest.mark.long
def test_the_code_of_today_writes_the_same_kinds_of_files(tmp_path):
    run_command("tests.golden.formats.make", str(tmp_path / "out"))

    def kinds(folder: Path) -> set[str]:
        files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {re.sub(r"[0-9a-f-]{6,}[0-9.:a-f-]*", "N", str(path)) for path in files}

    old = {kind for kind in kinds(FORMATS) if not kind.endswith((".py", ".md", ".pyc"))}
    assert old <= kinds(tmp_path / "out")
    retraining = json.loads((tmp_path / "out/retraining/state.json").read_text())
    assert retraining["attempt"]["phase"] == "finished"


def test_what_writes_these_files_can_be_started(tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(SystemExit, match="must be one new or empty folder"):
        make.main([str(tmp_path)])
