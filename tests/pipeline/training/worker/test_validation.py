"""Which datasets a run validates on."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import parse
from model.metrics import ConfusionMatrix
from pipeline.data.ingest.stream import Corpus, DataConfig, open_corpus
from pipeline.errors import UserError
from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.plan import validation_corpus
from pipeline.training.worker.validation import Validation
from tests.support.mini_shards import write_manifests


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Of idd there is nothing to validate on; bdd100k is not trained."""
    folder = tmp_path_factory.mktemp("shards")
    write_manifests(folder, ("ade20k", "cityscapes", "idd"), "train")
    write_manifests(folder, ("ade20k", "bdd100k", "cityscapes"), "val")
    return folder


def validated(shards: Path, trained: tuple[str, ...], **train: Any) -> Corpus | None:
    config = TrainMixConfig(data=DataConfig(shards=str(shards)), train=TrainConfig(**train))
    corpus = open_corpus(str(shards), "train")
    used = {name: corpus.manifests[name] for name in trained}
    return validation_corpus(config, replace(corpus, manifests=used))


@pytest.mark.parametrize(
    ("trained", "chosen", "expected"),
    [
        (("ade20k",), "trained", ["ade20k"]),
        (("ade20k", "idd"), "trained", ["ade20k"]),
        (("ade20k",), "all", ["ade20k", "bdd100k", "cityscapes"]),
        (("ade20k",), ("bdd100k", "cityscapes"), ["bdd100k", "cityscapes"]),
        (("idd",), "trained", None),
    ],
)
def test_the_datasets_that_are_trained_unless_told_otherwise(shards, trained, chosen, expected):
    val = validated(shards, trained, val_datasets=chosen)
    assert (val and list(val.manifests)) == expected
    if val is not None:
        assert (val.uri, val.split) == (str(shards), "val")


def test_what_is_not_there_is_told(shards):
    with pytest.raises(UserError, match=r"train\.val_datasets=\['adek'\]: .*mean 'ade20k'"):
        validated(shards, ("idd",), val_datasets=("adek",))
    with pytest.raises(UserError, match=r"train\.keep_best=val/bdd100k/miou: validated are ade20k"):
        validated(shards, ("ade20k",), keep_best="val/bdd100k/miou")
    assert validated(shards, ("ade20k",), keep_best="val/bdd100k/miou", val_datasets="all")


@pytest.mark.parametrize(
    ("word", "value"),
    [("all", "all"), ("trained", "trained"), ("[idd, ade20k]", ("idd", "ade20k"))],
)
def test_the_command_line_takes_words_and_lists(word, value):
    assert parse(TrainMixConfig, ["--train.val_datasets", word]).train.val_datasets == value


def test_a_dataset_that_shows_no_label_leaves_the_means_alone():
    shown, empty = ConfusionMatrix(2), ConfusionMatrix(2)
    shown.update(torch.tensor([[0, 0, 1, 0]]), torch.tensor([[0, 0, 1, 1]]))
    empty.update(torch.tensor([[0, 1]]), torch.tensor([[255, 255]]))
    metrics = Validation(("road", "sky"), {"idd": shown, "ade20k": empty}).metrics()
    assert metrics["val/miou"] == metrics["val/idd/miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["val/pixel_accuracy"] == 0.75
    assert math.isnan(metrics["val/ade20k/miou"])
    nothing = Validation(("road", "sky"), {"ade20k": empty}).metrics()
    assert math.isnan(nothing["val/miou"])
