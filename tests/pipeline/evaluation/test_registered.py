"""An evaluation of what is in service: workers load by number what the alias meant at the start."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.launch import evaluate
from pipeline.registry.registry import CHAMPION, Registry
from tests.support.mlflow_process import mlflow_is


@pytest.mark.slow
def test_the_champion_scores_as_its_folder_does(base_config, unified, tiny_checkpoint, mini_shards):
    uri = mini_shards.tracking_uri
    with mlflow_is(uri):
        registry = Registry(uri, "evaluated")
        run = json.loads((tiny_checkpoint.parent / "tracking-tiny.run.json").read_text())
        version = registry.register(tiny_checkpoint, run_id=run["run_id"])
        registry.set_alias(CHAMPION, version)
        config = replace(base_config, checkpoint="models:/evaluated@champion")
        outcome = evaluate(config)
    assert outcome.report["figures"] == unified.report["figures"]
    assert Path(outcome.folder).name.startswith("evaluated-1-")
