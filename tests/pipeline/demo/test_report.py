"""The demo's report and the protocol of the same questions, on a network that knows nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from model.checkpoint import save_checkpoint
from model.lseg import build_lseg
from pipeline.data.taxonomy import label_text, universal
from pipeline.demo.report import THRESHOLDS, evaluate_demo
from pipeline.evaluation.behaviours.classes import HELD_OUT
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.launch import evaluate as evaluate_protocol
from pipeline.training.driver.launch import Outcome
from tests.support.mini_shards import tiny_model

SEEN = [name for name in universal().classes if name not in HELD_OUT]


@pytest.fixture(scope="module")
def checkpoint(mini_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrained") / "step_00000004"
    torch.manual_seed(0)
    extra = {
        "run": {"name": "untrained", "storage": str(folder.parent)},
        "data": {"augment": {"base_px": 64}},
        "tracking": {"uri": mini_shards.tracking_uri, "experiment": "lseg"},
    }
    save_checkpoint(folder, build_lseg(tiny_model(), 512), SEEN, extra_config=extra)
    return folder


def has_content(path: Path) -> bool:
    return len(np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0)) > 50


def test_the_report_holds_what_it_wants_against_what_was_reached(
    mini_shards, checkpoint, tmp_path, capsys
):
    config = mini_shards.config(tmp_path / "runs", "demo")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    report = evaluate_demo(config, Outcome(str(checkpoint), {}, 1.0), 0, 2, out)
    report.finish({"train": 1.5})
    figures = json.loads((out / "report.json").read_text())
    assert figures["seconds"] == {"train": 1.5}
    assert figures["datasets"].keys() == {"ade20k", "cityscapes", "coco_panoptic"}
    assert figures["unseen_iou"].keys() == {label_text(name) for name in HELD_OUT}
    assert figures["reached"].keys() == THRESHOLDS.keys()
    # Random weights have learnt nothing, and are told so.
    assert figures["seen_miou"] < 0.2
    assert not figures["reached"]["seen_miou"]
    assert "not reached" in capsys.readouterr().err
    assert all(has_content(out / name) for name in ("overlay.png", "behaviours.png"))
    client = MlflowClient(mini_shards.tracking_uri)
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'demo'")
    assert run.data.metrics["val_demo/seen_miou"] == figures["seen_miou"]


def test_the_protocol_reports_the_same_behaviours(mini_shards, checkpoint, tmp_path):
    config = EvaluateConfig(
        checkpoint=str(checkpoint),
        protocol="behaviours",
        shards=str(mini_shards.folder),
        out=str(tmp_path / "out"),
        max_images=2,
    )
    outcome = evaluate_protocol(config)
    report = json.loads((Path(outcome.folder) / "report.json").read_text())
    assert report["images"] == sum(each["images"] for each in report["data"]) == 6
    assert has_content(Path(outcome.folder) / "behaviours.png")
    behaviours = THRESHOLDS.keys() - {"seen_miou", "unseen_miou", "unseen_over_chance"}
    assert behaviours <= report["figures"].keys()
    # The same questions, drawn from the same seed, have the same answers.
    again = evaluate_protocol(replace(config, out=str(tmp_path / "again")))
    assert again.report["figures"] == report["figures"]
    other = evaluate_protocol(replace(config, out=str(tmp_path / "other"), seed=1))
    assert other.report["figures"] != report["figures"]
