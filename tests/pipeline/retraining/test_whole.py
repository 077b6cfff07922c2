"""The command's own function end to end: real training, evaluation and registry, twice."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from model.checkpoint import local
from pipeline.checkpoints import resolvers  # noqa: F401
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.demo.layouts import write_mini_seven
from pipeline.evaluation.config import Geometry, WorkersConfig
from pipeline.registry.registry import Registry
from pipeline.retraining.config import ComparisonConfig, RetrainConfig
from pipeline.retraining.launch import retrain
from pipeline.training.config import TrainMixConfig
from tests.support.mini_shards import MiniShards, paint_vectors
from tests.support.mlflow_server import MlflowServer

# Two real trainings, three evaluations and a server.
pytestmark = pytest.mark.slow


def new_shards(folder: Path, seed: int) -> None:
    """Writes a dataset's training shards, as a conversion of newer pictures would."""
    roots = write_mini_seven(folder / f"raw {seed}", paint_vectors(), seed, 8, 2, ("cityscapes",))
    given = RootsConfig(cityscapes=str(roots["cityscapes"]))
    out = folder / f"shards {seed}"
    prepare(PrepareConfig(roots=given, out=str(out), samples_per_shard=3))
    shutil.rmtree(folder / "shards" / "cityscapes" / "train")
    shutil.move(out / "cityscapes" / "train", folder / "shards" / "cityscapes" / "train")


def test_new_shards_arrive(
    mini_shards: MiniShards, mlflow_server: MlflowServer, tmp_path, monkeypatch
):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # The job sets them.
        monkeypatch.setenv(name, mlflow_server.uri)
    shutil.copytree(mini_shards.folder, tmp_path / "shards")
    recipe = mini_shards.config(tmp_path / "runs", "mini", steps=3)
    values = {field.name: getattr(recipe, field.name) for field in fields(TrainMixConfig)}
    config = RetrainConfig(
        **values
        | {
            "data": mini_shards.data(shards=str(tmp_path / "shards")),
            "tracking": replace(recipe.tracking, uri=mlflow_server.uri),
        },
        registry=replace(RetrainConfig().registry, name="whole"),
        margin=0.0,
        max_drop=1.0,
        comparison=ComparisonConfig(
            geometry=Geometry(base_px=64),
            workers=WorkersConfig(num_workers=1, cpus_per_worker=0.5, use_gpu=False),
        ),
    )
    registry, client = Registry(mlflow_server.uri, "whole"), MlflowClient(mlflow_server.uri)

    assert retrain(config).kind == "promoted"
    assert retrain(config).kind == "unchanged"
    first = registry.alias("champion")
    assert first is not None

    new_shards(tmp_path, 77)
    # So small a step from the champion's weights that one can tell where it began.
    still = replace(config, train=replace(config.train, steps=1, lr=1e-9, weight_decay=0.0))
    result = retrain(still)
    assert result.kind in ("promoted", "rejected")
    (second,) = (version for version in registry.versions() if version.version != first.version)
    old, new = (load_file(local(v.uri) / "model.safetensors") for v in (first, second))
    for name, value in old.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new[name], value, atol=1e-5, rtol=0)
    cityscapes = "manifest.cityscapes"
    assert first.tags[cityscapes] != second.tags[cityscapes]
    assert first.tags["manifest.ade20k"] == second.tags["manifest.ade20k"]
    assert second.tags["retrain.why"].startswith("training shards of cityscapes changed")
    assert second.tags["retrain.compared_with"] == first.version
    # Both were evaluated on the same pictures, and each run knows its own figures.
    for version in (first, second):
        run = client.get_run(version.run_id)
        found = {k.split("/")[2:] == ["images"]: v for k, v in run.data.metrics.items()}
        assert found[True] == 6
        assert run.info.status == "FINISHED"
    champion = registry.alias("champion")
    assert champion is not None
    assert champion.version == (second if result.kind == "promoted" else first).version
    assert retrain(still).kind == ("unchanged" if result.kind == "promoted" else "tried")
