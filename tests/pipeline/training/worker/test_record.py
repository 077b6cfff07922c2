"""What a training tells MLflow of its data, and of what it has learnt."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.metrics import ConfusionMatrix
from pipeline.data.ingest.stream import Corpus, DataConfig
from pipeline.data.taxonomy import IGNORE
from pipeline.tracking.limits import MAX_PICTURE_BYTES
from pipeline.training.config import RunConfig, TrainMixConfig
from pipeline.training.plan import RunPlan, make_plan
from pipeline.training.worker.pictures import MOST_CLASSES, draw_confusion, draw_examples, small_png
from pipeline.training.worker.record import class_rows, describe_run, inputs_of, show_validation
from pipeline.training.worker.validation import Example, Validation
from tests.support.mini_shards import tiny_model, write_manifests

LABELS = ("road", "sky", "boat")


class Recorder:
    """Keeps what a tracker is given."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.setdefault(name, []).append(args)


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> RunPlan:
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        write_manifests(folder, ("ade20k", "idd"), split)
    run = RunConfig(name="mix", storage="s3://bucket/runs/")
    data = DataConfig(shards=str(folder))
    return make_plan(TrainMixConfig(run=run, data=data, model=tiny_model()))


def validation(examples: int = 0) -> Validation:
    one, two = ConfusionMatrix(3), ConfusionMatrix(3)
    one.update(torch.tensor([[0, 0, 1, 0]]), torch.tensor([[0, 0, 1, 1]]))
    two.update(torch.tensor([[1, 1]]), torch.tensor([[1, IGNORE]]))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    target = np.full((64, 64), IGNORE, np.uint8)
    target[:32, :40], image[32:] = 1, 0
    image[:, 40:] = 0
    drawn = [Example("idd", image, target, np.zeros((64, 64), np.int64))] * examples
    return Validation(LABELS, {"idd": one, "ade20k": two}, 0, drawn)


def test_the_datasets_are_named_by_the_fingerprints_of_the_tags(plan):
    tags = {"manifest.ade20k": "a" * 16, "validation.idd": "b" * 16}
    found = {(data.name, data.context): data for data in inputs_of(plan, tags)}
    assert set(found) == {(n, c) for n in ("ade20k", "idd") for c in ("train", "validation")}
    assert found["ade20k", "train"].digest == "a" * 16
    assert found["idd", "validation"].digest == "b" * 16
    assert found["idd", "train"].digest == plan.corpus.manifests["idd"].fingerprint
    root = plan.config.data.shards
    assert found["idd", "validation"].source == f"{root}/idd/val/manifest.json"
    assert found["idd", "train"].profile["num_rows"] == 10


def test_very_many_datasets_are_one_entry(plan):
    (manifest,) = list(plan.corpus.manifests.values())[:1]
    many = {f"class{number}": manifest for number in range(1000)}
    corpus = Corpus("s3://b/shards/", "train", many, plan.corpus.taxonomy)
    large = replace(plan, corpus=corpus, validation=None)
    (data,) = inputs_of(large, {"manifests": "feedfeedfeedfeed (1000 datasets)"})
    assert (data.name, data.digest) == ("1000 datasets", "feedfeedfeedfeed")
    assert (data.source, data.profile["num_rows"]) == ("s3://b/shards", 10_000)


def test_a_run_says_where_its_checkpoints_lie_and_which_settings_it_has(plan):
    tracker: Any = Recorder()
    describe_run(tracker, plan, {})
    assert tracker.calls["set_tags"] == [({"checkpoints": "s3://bucket/runs/mix"},)]
    ((settings, path),) = tracker.calls["log_dict"]
    assert (path, settings["run"]["name"]) == ("config.yaml", "mix")
    assert tracker.calls["watch_system"] == [(10.0,)]


def test_a_row_for_each_class_that_is_there_or_was_answered():
    assert class_rows(validation(), 7) == [
        (7, "idd", "road", pytest.approx(2 / 3, abs=1e-4), 2, 3),
        (7, "idd", "sky", 0.5, 2, 1),
        (7, "ade20k", "sky", 1.0, 1, 1),
    ]


def test_a_validation_shows_a_table_and_two_pictures():
    tracker: Any = Recorder()
    show_validation(tracker, validation(examples=4), 7)
    ((_, rows, path),) = tracker.calls["log_table"]
    assert (path, len(rows)) == ("classes.json", 3)
    pictures = {name: (png, step) for name, png, step in tracker.calls["log_picture"]}
    assert set(pictures) == {"overlays", "confusion"}
    for png, step in pictures.values():
        assert step == 7
        assert len(png) <= MAX_PICTURE_BYTES
    # The padding of the square is cut off: the lines are as high as the image is.
    assert Image.open(io.BytesIO(pictures["overlays"][0])).height == 20 + 4 * (220 * 32 // 40 + 6)


def test_a_defect_in_a_picture_ends_no_run(caplog):
    def broken(*_: object) -> None:
        raise ValueError("no font")

    tracker: Any = SimpleNamespace(log_table=broken)
    show_validation(tracker, validation(), 7)
    assert "step 7: no pictures of the validation: no font" in caplog.text


def test_the_truth_has_its_colour_and_the_unknown_is_grey():
    image = np.full((60, 60, 3), 100, np.uint8)
    target = np.full((60, 60), IGNORE, np.uint8)
    target[:, :30] = 0
    sheet = draw_examples([Example("idd", image, target, np.ones((60, 60), np.int64))], LABELS)
    pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB")).astype(int)
    truth, answer = pixels[20:240, 226:446], pixels[20:240, 452:672]
    road, sky = np.array([128, 64, 128]), np.array([70, 130, 180])
    assert abs(truth[100, 50] - (0.35 * 100 + 0.65 * road)).max() < 8
    assert abs(answer[100, 50] - (0.35 * 100 + 0.65 * sky)).max() < 8
    assert np.ptp(truth[100, 170]) < 8
    assert truth[100, 170].min() > 140


def test_a_confusion_of_very_many_classes_shows_the_largest():
    matrix = ConfusionMatrix(200)
    ids = torch.arange(200).repeat_interleave(torch.arange(1, 201))
    matrix.update(ids.flip(0), ids)
    picture = draw_confusion([matrix], [f"class number {number}" for number in range(200)])
    assert Image.open(io.BytesIO(picture)).size == (130 + 24 * (MOST_CLASSES + 1), 130 + 24 * 24)
    assert draw_confusion([ConfusionMatrix(3)], LABELS) == b""


def test_a_picture_is_shrunk_until_it_is_small():
    noise = np.random.default_rng(0).integers(0, 256, (1200, 900, 3), dtype=np.uint8)
    picture = small_png(Image.fromarray(noise))
    assert len(picture) <= MAX_PICTURE_BYTES
    assert Image.open(io.BytesIO(picture)).width >= 300
