"""Models that cannot be built are told before any worker starts."""

import socket
from dataclasses import replace

import psutil
import pytest
import torch

from model.config import BackboneConfig, HeadConfig, ModelConfig, TextConfig
from model.errors import ModelError
from model.text import TrainedTower
from pipeline.data.taxonomy import Taxonomy
from pipeline.errors import UserError
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.driver.launch import absolute
from pipeline.training.driver.preflight import check_model, check_trained_text, check_training
from pipeline.training.questions.labels import label_space
from pipeline.training.state.optimizer import freeze_text
from tests.support.mini_shards import tiny_model
from tests.support.tiny_clip import tiny_clip

TINY = {"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 32}


def config(**backbone) -> ModelConfig:
    backbone = {"name": "vit_tiny_patch16_224", "pretrained": True, "kwargs": TINY} | backbone
    return ModelConfig(backbone=BackboneConfig(**backbone), text=TextConfig(encoder="stand-in"))


def test_a_model_that_can_be_built_passes_without_making_or_looking_for_weights(monkeypatch):
    asked = []

    def connect(self, address):
        asked.append(address)
        raise OSError("this machine has no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    before = psutil.Process().memory_info().rss
    check_model(config())
    check_model(ModelConfig())  # 0.4 billion weights, that is 1.6 GB.
    assert asked == []
    assert psutil.Process().memory_info().rss - before < 600e6


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (config(name="vit_tinny"), "vit_tinny"),
        (config(kwargs=TINY | {"num_heads": 3}), "num_heads"),
        (config(kwargs=TINY | {"no_such_setting": 3}), "no_such_setting"),
        (config(hooks=(0, 1, 2, 9)), "hooks"),
        (ModelConfig(text=TextConfig(encoder="ViT-B-33")), "ViT-B-33"),
    ],
)
def test_a_model_that_cannot_be_built_is_told_with_its_key(wrong, words):
    with pytest.raises(ModelError, match=words):
        check_model(wrong)


@pytest.mark.parametrize("kind", ["dot-aligned", "cost"])
def test_the_text_tower_of_another_training_is_told(kind):
    """Here the weights are not looked for, and a wrong pair would otherwise end the workers."""
    right = ModelConfig(
        backbone=BackboneConfig(name="vit_base_patch16_clip_quickgelu_224.openai"),
        text=TextConfig(encoder="ViT-B-16-quickgelu", pretrained="openai"),
        head=HeadConfig(kind=kind),
    )
    check_model(right)
    wrong = replace(right, text=TextConfig(encoder="ViT-B-16", pretrained="laion2b_s34b_b88k"))
    with pytest.raises(ModelError, match=r"set model.text.encoder to ViT-B-16-quickgelu and"):
        check_model(wrong)


def test_files_that_the_network_names_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = BackboneConfig(name="resnet10t", weights="w.pth")
    model = ModelConfig(backbone=backbone, text=TextConfig(encoder="table:t.txt"))
    config = TrainMixConfig(run=RunConfig(storage=str(tmp_path)), model=model)
    found = absolute(config).model
    assert found.backbone.weights == str(tmp_path / "w.pth")
    assert found.text.encoder == f"table:{tmp_path / 't.txt'}"
    of_file = replace(model, text=TextConfig(encoder="ViT-B-16", pretrained="w.safetensors"))
    found = absolute(replace(config, model=of_file)).model
    assert found.text.pretrained == str(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"text\.pretrained=.*w\.safetensors: no such file"):
        check_model(replace(found, backbone=tiny_model().backbone))
    named = replace(
        model,
        backbone=BackboneConfig(name="tf_efficientnet_lite0", weights="package:efficientnet-lite0"),
        text=TextConfig(encoder="package:all-minilm-l6-v2"),
    )
    assert absolute(replace(config, model=named)).model == named


def test_a_text_tower_that_cannot_be_trained_is_refused_before_any_worker(tmp_path):
    text = tiny_clip(tmp_path, synonyms="mean")
    config = TrainMixConfig(model=tiny_model(text=text), train=TrainConfig(text="attention-qv"))
    taxonomy = Taxonomy("own", ("road", "car, auto"))
    with pytest.raises(ModelError, match=r"text\.synonyms=mean: gives labels 1 to 2 texts"):
        check_trained_text(config, label_space(taxonomy.classes, taxonomy))
    even = Taxonomy("own", ("road, way", "car, auto"))
    check_trained_text(config, label_space(even.classes, even))
    tower = check_training(config).text_tower
    assert tower is not None
    assert {each.device.type for each in tower.parameters()} == {"meta"}
    # As towers of Hugging Face's, whose attention has other names.
    other = TrainedTower(torch.nn.Linear(2, 2), text)
    with pytest.raises(UserError, match=r"train\.text=attention-qv: the text tower of lseg-tiny"):
        freeze_text(other, text.encoder)


def test_weights_of_another_network_are_refused_before_any_worker(tmp_path):
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "w.pth")
    backbone = BackboneConfig(name="resnet10t", weights=str(tmp_path / "w.pth"))
    model = ModelConfig(backbone=backbone, text=TextConfig(encoder="stand-in"), features=16)
    with pytest.raises(ModelError, match=r"backbone\.weights=.*w\.pth: (fills 0\.0 %|cannot be)"):
        check_model(model)
