"""Writes what lies beside this file, as the code of today stores it; see README.md.

    python -m tests.golden.formats.make DIR

What lies here is of an older revision, and stays: the program of today must go on reading it. When
a format changes, the files of the revision before are written by that revision's own copy of this.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml
from mlflow import MlflowClient

from jobs.local_ray import require_token
from jobs.sweep import build_evaluation, build_trial
from model.config import BackboneConfig, ModelConfig
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.demo.layouts import write_mini_seven
from pipeline.evaluation.config import Geometry, WorkersConfig
from pipeline.registry.registry import Registry
from pipeline.retraining.config import ComparisonConfig, RetrainConfig
from pipeline.retraining.launch import retrain
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.launch import run_sweep
from pipeline.sweep.runner import Builders
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import TrainMixConfig
from tests.support.mini_shards import MiniShards, paint_vectors, tiny_model

DATASETS = ("ade20k", "cityscapes")
NAME = "old"


@dataclass(frozen=True)
class Places:
    """Where the jobs work, and where what is kept of them goes."""

    work: Path
    out: Path


def thin_model() -> ModelConfig:
    """A network whose weights take some kilobytes."""
    size = {"patch_size": 8, "depth": 4, "embed_dim": 8, "num_heads": 2, "img_size": 48}
    backbone = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=size)
    return tiny_model(backbone=backbone, features=4)


def make_shards(at: Places) -> MiniShards:
    """Converts a few pictures of two datasets."""
    roots = write_mini_seven(at.work / "raw", paint_vectors(), 5, 3, 1, DATASETS)
    given = RootsConfig(**{name: str(root) for name, root in roots.items()})
    prepare(PrepareConfig(roots=given, out=str(at.work / "shards"), samples_per_shard=2))
    return MiniShards(at.work / "shards", f"sqlite:///{at.work / 'mlflow.db'}")


def recipe_of(at: Places, mini: MiniShards, name: str, **train: Any) -> TrainMixConfig:
    """A training of three steps."""
    config = mini.config(at.work / "runs", name, steps=3, **train)
    return replace(config, model=thin_model())


def keep_retraining(at: Places, mini: MiniShards) -> None:
    """Trains, registers and promotes: a checkpoint, a state, decisions, a registered version."""
    recipe = recipe_of(at, mini, NAME, checkpoint_every=3, validate_every=3)
    values = {field.name: getattr(recipe, field.name) for field in fields(TrainMixConfig)}
    comparison = ComparisonConfig(
        geometry=Geometry(base_px=64),
        workers=WorkersConfig(num_workers=1, cpus_per_worker=0.5, use_gpu=False),
    )
    config = RetrainConfig(
        **values, registry=replace(RetrainConfig().registry, name=NAME), comparison=comparison
    )
    assert retrain(config).kind == "promoted"
    state = at.work / "runs" / "retrain" / NAME
    ignored = shutil.ignore_patterns("*.lock", "evaluations")
    shutil.copytree(state, at.out / "retraining", ignore=ignored)
    attempt = json.loads((state / "state.json").read_text())["attempt"]
    run = Path(attempt["checkpoint"]).parent
    # The best model is that of the last step, so git keeps its weights once.
    shutil.copytree(run, at.out / "run", ignore=shutil.ignore_patterns(".validate_storage_marker"))
    registry, client = Registry(mini.tracking_uri, NAME), MlflowClient(mini.tracking_uri)
    (version,) = registry.versions()
    model = client.get_registered_model(NAME)
    facts = {
        "registered_model": {"tags": dict(model.tags), "description": model.description},
        "version": asdict(version),
        "description": client.get_model_version(NAME, version.version).description,
    }
    (at.out / "registered.json").write_text(json.dumps(facts, indent=1) + "\n")


def keep_sweep(at: Places, mini: MiniShards) -> None:
    """Two trials."""
    recipe = recipe_of(at, mini, "unused", validate_every=3)
    values = asdict(recipe)
    for part in ("run", "tracking"):
        del values[part]
    config = SweepConfig(
        name="old-sweep",
        base="written by make.py",
        metric="val/pixel_accuracy",
        storage=str(at.work / "sweeps"),
        max_concurrent=2,
        grid={"train.lr": [0.01, 0.02]},
        tracking=TrackingConfig(uri=mini.tracking_uri),
    )
    text = yaml.safe_dump(json.loads(json.dumps(values)))
    training = partial(build_trial, config, text)
    run_sweep(config, Builders(training, partial(build_evaluation, config)))
    root = at.work / "sweeps" / "old-sweep"
    (at.out / "sweep").mkdir()
    (at.out / "sweep" / "recipe.yaml").write_text(text)
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix == ".json":
            shutil.copy(path, at.out / "sweep" / path.name)
    shutil.copytree(root / "results", at.out / "sweep" / "results")


def keep_spill(at: Places) -> None:
    """A run whose server never answered."""
    (at.out / "spill").mkdir()
    path = at.out / "spill" / "tracking-old.jsonl"
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


def main(argv: Sequence[str] | None = None) -> None:
    """Writes all of it into the folder that the command names, which must be empty."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1 or (Path(words[0]).exists() and any(Path(words[0]).iterdir())):
        sys.exit(f"{' '.join(words) or 'DIR'}: must be one new or empty folder to write into")
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    out = Path(words[0]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    require_token()
    with tempfile.TemporaryDirectory(prefix="lseg-formats-") as work:
        at = Places(Path(work), out)
        ray.init(address="local", num_cpus=4, include_dashboard=False)
        try:
            mini = make_shards(at)
            shutil.copytree(at.work / "shards", out / "shards")
            keep_spill(at)
            keep_retraining(at, mini)
            keep_sweep(at, mini)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
