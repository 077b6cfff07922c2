"""From a champion to its run, data and code, and from each of these to the run; on one store."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.ingest.stream import DataConfig
from pipeline.registry.registry import CHAMPION, Registry
from pipeline.tracking.run_page import models_of, outputs_of
from pipeline.tracking.tracker import Tracker, TrackingConfig
from pipeline.training.config import RunConfig, TrainMixConfig
from pipeline.training.plan import make_plan
from pipeline.training.saving.logged import BEST_TAG, LAST_TAG, logged_checkpoint
from pipeline.training.worker.record import describe_run
from tests.pipeline.registry.test_registry import write_checkpoint
from tests.support.mini_shards import tiny_model, write_manifests
from tests.support.mlflow_process import mlflow_is
from tests.support.mlflow_store import new_store

COMMIT, SOURCES = "c" * 40, "5" * 16


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Any:
    """A run that described itself as a training does, and its best model as the champion."""
    root = tmp_path_factory.mktemp("lineage")
    for split in ("train", "val"):
        write_manifests(root / "shards", ("ade20k", "idd"), split)
    folder = write_checkpoint(root / "runs/mix/best_00000012", 2)
    last = str(root / "runs/mix/step_00000013")
    uri = new_store(root)
    config = TrainMixConfig(
        run=RunConfig(name="mix", storage=str(root / "runs")),
        data=DataConfig(shards=str(root / "shards")),
        model=tiny_model(),
        tracking=TrackingConfig(uri=uri),
    )
    plan = make_plan(config)
    tags = {"git_commit": COMMIT, "source_fingerprint": SOURCES}
    tags |= plan.manifest_tags | plan.validation_tags
    with mlflow_is(uri):
        with Tracker.start(config.tracking, run_name="mix", spill_path=None, tags=tags) as tracker:
            describe_run(tracker, plan, tags)
            tracker.set_tags({BEST_TAG: str(folder), LAST_TAG: last})
            tracker.log_model(logged_checkpoint(folder, str(folder), 12, tags))
            run_id = tracker.wait_for_run(60)
            assert run_id
        registry = Registry(uri)
        given = {"checkpoint": str(folder)}
        version = registry.register(folder, run_id=run_id, tags=given)
        registry.set_alias(CHAMPION, version)
        yield plan, folder, last, run_id, registry


@pytest.mark.parametrize("by", ["data", "tag", "validation", "commit", "sources", "best", "last"])
def test_a_run_is_found_by_its_data_code_and_checkpoints(world, by: str):
    import mlflow

    plan, folder, last, run_id, _ = world
    data = plan.corpus.manifests["idd"].fingerprint
    assert plan.validation is not None
    validated = plan.validation.manifests["ade20k"].fingerprint
    words = {
        "data": f"dataset.digest = '{data}'",
        "tag": f"tags.`manifest.idd` = '{data}'",
        "validation": f"dataset.digest = '{validated}' AND dataset.context = 'validation'",
        "commit": f"tags.git_commit = '{COMMIT}'",
        "sources": f"tags.source_fingerprint = '{SOURCES}'",
        "best": f"tags.`checkpoint.best` = '{folder}'",
        "last": f"tags.`checkpoint.last` = '{last}'",
    }[by]
    found = mlflow.search_runs(search_all_experiments=True, filter_string=words)
    assert found["run_id"].tolist() == [run_id]
    other = words.rsplit("'", 2)[0] + "'nothing'"
    assert mlflow.search_runs(search_all_experiments=True, filter_string=other).empty


def test_the_model_of_the_run_is_the_one_that_is_registered(world):
    from mlflow import MlflowClient

    _, folder, _, run_id, registry = world
    client, champion = MlflowClient(registry.tracking_uri), registry.alias(CHAMPION)
    run = client.get_run(run_id)
    (model,) = models_of(client, run)
    assert [output.model_id for output in outputs_of(run)] == [model.model_id]
    assert champion.source == f"models:/{model.model_id}"
    assert model.tags["checkpoint"] == str(folder)
    assert "mlflow.model.isExternal" not in model.tags
    files = {path.name for path in Path(model.artifact_location.removeprefix("file://")).iterdir()}
    assert {"MLmodel", "artifacts", "code"} <= files


def test_the_champions_page_leads_to_its_run_data_and_code(world):
    from mlflow import MlflowClient

    _, folder, _, run_id, registry = world
    client, champion = MlflowClient(registry.tracking_uri), registry.alias(CHAMPION)
    page = client.get_model_version("lseg", champion.version).description
    run = client.get_run(run_id)
    place = f"#/experiments/{run.info.experiment_id}"
    assert f"[mix]({place}/runs/{run_id}?workflowType=machine_learning)" in page
    assert f"{place}/models/{champion.source.removeprefix('models:/')}?" in page
    assert f"commit `{COMMIT}`" in page
    provenance = json.loads((folder / "provenance.json").read_text())
    assert f"ade20k `{provenance['manifest.ade20k']}`" in page
    assert f"checkpoint: `{folder}`" in page
