"""What a run on few-shot pairs asks: "others" and the class of each picture, as its test does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint import read_checkpoint
from model.config import TextConfig
from model.lseg import LSeg
from model.text import StandInEncoder, build_text_encoder
from pipeline.data.datasets.few_shot import open_few_shot
from pipeline.data.datasets.few_shot.training import PairReader, open_training
from pipeline.data.ingest.mixture import Row
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.protocols import make_plan
from pipeline.storage.open import open_storage
from pipeline.training.config import OtherConfig, TrainConfig, TrainMixConfig
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.labels import episode_labels
from pipeline.training.saving import checkpoint
from pipeline.training.state.state import build_state
from tests.support.few_shot_roots import write_fss
from tests.support.mini_shards import tiny_model

ENCODER = build_text_encoder(TextConfig(encoder="stand-in"))
CPU = torch.device("cpu")
TRAIN = TrainConfig(label_sets="own", steps=9)
NAMES = ("ac_wall", "zucchini", "bell")


class Listening(StandInEncoder):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(ENCODER.config)
        self.heard: list[str] = []

    def _forward(self, texts: list[str]) -> torch.Tensor:
        self.heard += texts
        return super()._forward(texts)


def manifest(name: str) -> Manifest:
    return Manifest(
        2, "fss_1000_000", "train", f"episode:{name}", "", "", {}, (), (4, 5), (), (),
        ("others", "class"),
    )  # fmt: skip


def stored(reader: PairReader) -> Manifest:
    return replace(manifest(""), taxonomy=reader.labelling.taxonomy.name)


def rows(*datasets: int) -> list[Row]:
    return [Row(t, dataset, 0, 0) for t, dataset in enumerate(datasets)]


def test_training_and_evaluation_ask_a_class_by_the_same_words(tmp_path):
    write_fss(tmp_path, ("ac_wall", "zucchini"), per_class=2)
    readers = list(open_training("fss-1000", str(tmp_path), open_storage(f"{tmp_path}/splits")))
    labels = episode_labels(map(stored, readers), TRAIN)
    assert labels is not None
    assert labels.texts == ("others", "ac_wall", "zucchini")
    config = EvaluateConfig(
        checkpoint="none", protocol="fss-1000", roots={"fss-1000": str(tmp_path)}
    )
    (part,) = make_plan(config, ()).parts
    # A test class: its folder's name as it is, after the same word for all others.
    assert part.source.open()(0).texts == ("others", "abe's_flyingfish")
    few_shot = open_few_shot("fss-1000", str(tmp_path))
    trained = few_shot.training_names(open_storage(f"{tmp_path}/splits"))
    assert labels.texts[1:] == tuple(trained.values())
    # And these are what the encoder is asked; the stand-in itself would not tell a space from "_".
    listening = Listening()
    EpisodeQuestions(labels, listening, CPU)
    assert listening.heard == ["others", "ac_wall", "zucchini"]


def test_the_checkpoint_says_the_words_that_were_asked(tmp_path):
    config = TrainMixConfig(model=tiny_model(), train=TRAIN)
    labels = episode_labels(map(manifest, NAMES), TRAIN)
    assert labels is not None
    provenance = checkpoint.provenance_of(config, labels, {}, {})
    checkpoint.save(tmp_path, checkpoint.content_of(build_state(config, 512, CPU)), provenance)
    stored = read_checkpoint(tmp_path)
    assert stored.labels == stored.texts == ("others", *NAMES)
    assert tuple(LSeg.load(tmp_path).labels) == ("others", *NAMES)


def test_in_a_picture_only_others_and_its_class_compete():
    labels = episode_labels(map(manifest, NAMES), TRAIN)
    assert labels is not None
    asked = EpisodeQuestions(labels, ENCODER, CPU)
    pictures = rows(2, 0, 2)
    question = asked.at(7, pictures)
    # "bell" and "ac_wall" are in the step, "zucchini" is not.
    torch.testing.assert_close(question.text_KC, ENCODER.encode(["others", "ac_wall", "bell"]))
    dataset = torch.tensor([row.dataset for row in pictures])
    label = torch.from_numpy(np.array([[[0, 1, IGNORE]]] * 3, np.uint8))
    assert question.target(label, dataset)[:, 0].tolist() == [
        [0, 2, IGNORE],
        [0, 1, IGNORE],
        [0, 2, IGNORE],
    ]
    likely = question.mask(torch.zeros(3, 3, 1, 1), dataset).softmax(1)[:, :, 0, 0]
    assert likely.tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5]]
    assert question.chance_loss([row.dataset for row in pictures]) == pytest.approx(math.log(2))


def test_other_shards_and_settings_do_not_go_with_pairs():
    assert episode_labels([replace(manifest("x"), taxonomy="mseg")], TRAIN) is None
    mixed = [manifest("x"), replace(manifest("x"), dataset="idd", taxonomy="mseg")]
    for manifests, train, words in (
        (mixed, TRAIN, "idd is no few-shot benchmark"),
        ([manifest("x")], TrainConfig(), r"train\.label_sets=union: must be own"),
        ([manifest("x")], replace(TRAIN, other=OtherConfig(share=0.5)), r"train\.other\.share=0.5"),
    ):
        with pytest.raises(UserError, match=words):
            episode_labels(manifests, train)
