"""Writes what lies beside this file, with the code of revision f9ab2ff; see README.md.

    cd CLONE_OF_F9AB2FF
    PYTHONPATH=. python PATH_TO_THIS/make.py

Its imports are those of that revision: it does not run with the code of today, and need not.
"""

import json
import os
import shutil
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import ray
import yaml

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

from mlflow import MlflowClient
from pipeline.data.prepare_config import PrepareConfig, RootsConfig
from pipeline.data.synthetic_layout import write_mini_seven
from pipeline.training.evaluation.config import Geometry, WorkersConfig
from pipeline.training.registry import Registry
from pipeline.training.retraining.config import ComparisonConfig, RetrainConfig
from pipeline.training.retraining.launch import retrain
from pipeline.training.sweep.config import SweepConfig
from pipeline.training.sweep.launch import run_sweep
from pipeline.training.sweep.runner import Builders
from pipeline.training.tracking import Tracker, TrackingConfig
from tests.mini_shards import MiniShards, paint_vectors, tiny_model

from jobs.sweep import build_evaluation, build_trial
from model.config import BackboneConfig
from pipeline.data.prepare import prepare
from pipeline.training.config import TrainMixConfig

WORK = Path("/tmp/lseg-formats")
HERE = Path(__file__).parent
DATASETS = ("ade20k", "cityscapes")
NAME = "old"


def thin_model():
    size = {"patch_size": 8, "depth": 4, "embed_dim": 8, "num_heads": 2, "img_size": 48}
    backbone = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=size)
    return tiny_model(backbone=backbone, features=4)


def make_shards() -> MiniShards:
    roots = write_mini_seven(WORK / "raw", paint_vectors(), 5, 3, 1, DATASETS)
    given = RootsConfig(**{name: str(root) for name, root in roots.items()})
    prepare(PrepareConfig(roots=given, out=str(WORK / "shards"), samples_per_shard=2))
    return MiniShards(WORK / "shards", f"sqlite:///{WORK / 'mlflow.db'}")


def recipe_of(mini: MiniShards, name: str, **train) -> TrainMixConfig:
    config = mini.config(WORK / "runs", name, steps=3, **train)
    return replace(config, model=thin_model())


def keep_retraining(mini: MiniShards) -> None:
    """Trains, registers and promotes: a checkpoint, a state, decisions, a registered version."""
    recipe = recipe_of(mini, NAME, checkpoint_every=3, validate_every=3)
    values = {field.name: getattr(recipe, field.name) for field in fields(TrainMixConfig)}
    comparison = ComparisonConfig(
        geometry=Geometry(base_px=64),
        workers=WorkersConfig(num_workers=1, cpus_per_worker=0.5, use_gpu=False),
    )
    config = RetrainConfig(
        **values, registry=replace(RetrainConfig().registry, name=NAME), comparison=comparison
    )
    assert retrain(config).kind == "promoted"
    state = WORK / "runs" / "retrain" / NAME
    ignored = shutil.ignore_patterns("*.lock", "evaluations")
    shutil.copytree(state, HERE / "retraining", ignore=ignored)
    attempt = json.loads((state / "state.json").read_text())["attempt"]
    run = Path(attempt["checkpoint"]).parent
    # The best model is that of the last step, so git keeps its weights once.
    shutil.copytree(run, HERE / "run", ignore=shutil.ignore_patterns(".validate_storage_marker"))
    registry, client = Registry(mini.tracking_uri, NAME), MlflowClient(mini.tracking_uri)
    (version,) = registry.versions()
    model = client.get_registered_model(NAME)
    facts = {
        "registered_model": {"tags": dict(model.tags), "description": model.description},
        "version": asdict(version),
        "description": client.get_model_version(NAME, version.version).description,
    }
    (HERE / "registered.json").write_text(json.dumps(facts, indent=1) + "\n")


def keep_sweep(mini: MiniShards) -> None:
    recipe = recipe_of(mini, "unused", validate_every=3)
    values = asdict(recipe)
    for part in ("run", "tracking"):
        del values[part]
    config = SweepConfig(
        name="old-sweep",
        base="written by make.py",
        metric="val/pixel_accuracy",
        storage=str(WORK / "sweeps"),
        max_concurrent=2,
        grid={"train.lr": [0.01, 0.02]},
        tracking=TrackingConfig(uri=mini.tracking_uri),
    )
    text = yaml.safe_dump(json.loads(json.dumps(values)))
    training = partial(build_trial, config, text)
    run_sweep(config, Builders(training, partial(build_evaluation, config)))
    root = WORK / "sweeps" / "old-sweep"
    (HERE / "sweep").mkdir()
    (HERE / "sweep" / "recipe.yaml").write_text(text)
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix == ".json":
            shutil.copy(path, HERE / "sweep" / path.name)
    shutil.copytree(root / "results", HERE / "sweep" / "results")


def keep_spill() -> None:
    """A run whose server never answered."""
    (HERE / "spill").mkdir()
    path = HERE / "spill" / "tracking-old.jsonl"
    tracker = Tracker.start(
        TrackingConfig(uri="http://127.0.0.1:9", experiment="lseg"),
        run_name="old",
        params={"train.lr": 0.01, "data.shards": "/shards"},
        tags={"git_commit": "0" * 40},
        spill_path=path,
    )
    for step in (1, 2, 3):
        tracker.log_metrics({"train/loss": 1.0 / step, "train/lr": 0.01}, step)
    tracker.close("FINISHED", 1.0)


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    for name in ("shards", "run", "retraining", "sweep", "spill"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    WORK.mkdir()
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    mini = make_shards()
    shutil.copytree(WORK / "shards", HERE / "shards")
    keep_spill()
    keep_retraining(mini)
    keep_sweep(mini)


if __name__ == "__main__":
    main()
