"""The cost head through the jobs: a trial of a sweep; evaluated, predicted, served, exported."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from jobs.sweep import build_evaluation, build_trial
from model.lseg import LSeg
from pipeline.inference.config import PredictConfig
from pipeline.inference.export.config import ExportConfig
from pipeline.inference.export.run import export
from pipeline.inference.run import segment_photos
from pipeline.inference.served_limits import Limits
from pipeline.serving.app import build_app
from pipeline.serving.champion import Champion
from pipeline.serving.engine import Engine
from pipeline.serving.local import LocalBackend
from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.launch import run_sweep
from pipeline.sweep.runner import Builders
from pipeline.tracking.tracker import TrackingConfig
from tests.integration.training_runs import write_recipe
from tests.pipeline.serving.conftest import png
from tests.support.mini_shards import MiniShards

LABELS = ("wall", "sky", "boat")
DOT = {"model.head.kind": "dot", "model.head.padded": 256}
COST = {"model.head.kind": "cost"}
LIMITS = Limits(max_image_mib=0.05, max_image_mpx=0.01, max_labels=300)


# Whole jobs, which alone can show that nothing on the way knows one head only.
@pytest.mark.slow
def test_every_job_takes_the_cost_head(mini_shards: MiniShards, tmp_path):
    figures, checkpoint = swept(mini_shards, tmp_path, [COST])
    assert {0 <= trial["eval/miou"] <= 1 for trial in figures.values()} == {True}
    assert LSeg.load(checkpoint).scores_apart
    (tmp_path / "photo.png").write_bytes(png())
    out = tmp_path / "predicted"
    photo = str(tmp_path / "photo.png")
    labels = ",".join(LABELS)
    asked = PredictConfig(images=(photo,), checkpoint=checkpoint, labels=labels, out=str(out))
    segment_photos(asked, lambda _: None)
    (mask,) = out.rglob("photo.png")
    with Image.open(mask) as image:
        predicted = np.asarray(image)
    assert predicted.shape == (40, 64)
    assert len(np.unique(predicted)) > 1  # Else any two answers would agree.
    assert served(checkpoint, predicted) > 0.99


@pytest.mark.long
def test_it_is_swept_beside_another_head_and_exported(mini_shards: MiniShards, tmp_path):
    figures, checkpoint = swept(mini_shards, tmp_path, [DOT, COST])
    assert len(figures) == 2
    assert {0 <= trial["eval/miou"] <= 1 for trial in figures.values()} == {True}
    export(ExportConfig(checkpoint=checkpoint, to="torch", out=str(tmp_path / "exported")))
    assert (tmp_path / "exported" / "segment.pt2").is_file()


def swept(
    mini: MiniShards, folder: Path, trials: Sequence[dict[str, Any]]
) -> tuple[Mapping[str, Mapping[str, float]], str]:
    """Sweeps over heads; the figures by trial, and the last checkpoint of the cost head."""
    config = SweepConfig(
        name="heads",
        base="written by the test",
        storage=str(folder),
        metric="eval/miou",
        overrides={
            "train.warmup_steps": 1,
            "train.validate_every": 4,
            "cluster.num_workers": 1,
        },
        trials=list(trials),
        evaluate={"protocol": "unified", "shards": str(mini.folder), "max_images": 2},
        tracking=TrackingConfig(uri=mini.tracking_uri),
    )
    recipe = write_recipe(folder, mini.folder, steps=4, every=4, batch=4, head="cost").read_text()
    training = functools.partial(build_trial, config, recipe)
    run_sweep(config, Builders(training, functools.partial(build_evaluation, config)))
    found = results.read_all(open_storage(f"{config.storage}/{config.name}"))
    assert {result.status for result in found.values()} == {"finished"}, found
    (cost,) = (name for name, each in found.items() if "cost" in each.params.values())
    (checkpoint,) = (folder / "heads").rglob(f"*{cost}*/step_00000004")
    return {name: each.metrics for name, each in found.items()}, str(checkpoint)


def served(checkpoint: str, predicted: np.ndarray) -> float:
    """The share of pixels that the service answers as the job that predicts did."""
    champion = Champion(checkpoint, "cpu", LIMITS, 0)
    engine = Engine(lambda: champion.current)
    app = build_app(LocalBackend(champion, engine), LIMITS)
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    form = {"labels": ",".join(LABELS)}
    try:
        answer = client.post("/v1/segment", files={"image": png()}, data=form)
    finally:
        engine.close()
    assert answer.status_code == 200, answer.text
    runs = answer.json()["runs"]
    return float((np.repeat(runs[::2], runs[1::2]).reshape(predicted.shape) == predicted).mean())
