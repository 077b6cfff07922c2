from dataclasses import asdict

import pytest

from model.config import BackboneConfig, ModelConfig, TextConfig
from model.model_card import has_own_place, published_config, published_text


@pytest.mark.parametrize(
    "text",
    [
        TextConfig(),
        TextConfig(encoder="stand-in"),
        TextConfig(encoder="package:all-minilm-l6-v2"),
        TextConfig(encoder="hf-hub:owner/name", pretrained=""),
        TextConfig(encoder="sentence-transformers/all-MiniLM-L6-v2"),
        TextConfig(encoder="sentence-transformers/owner/name"),
        TextConfig(encoder="ViT-B-32", pretrained="laion2b_s34b_b79k"),
        TextConfig(encoder="ViT-B-32", pretrained="text_encoder.safetensors"),
    ],
)
def test_names_are_published_as_they_are(text):
    assert published_text(text) == text
    assert not has_own_place(text)


@pytest.mark.parametrize(
    ("encoder", "published"),
    [
        ("table:words.txt", "table:(not published)"),
        ("table:~/words.txt", "table:(not published)"),
        ("sentence-transformers//models/minilm", "sentence-transformers/(not published)"),
        ("sentence-transformers/../minilm", "sentence-transformers/(not published)"),
        ("sentence-transformers/a/b/c", "sentence-transformers/(not published)"),
        ("local-dir:clip", "local-dir:(not published)"),
        ("hf-hub:/models/clip", "(not published)"),
        ("C:\\Users\\alice\\clip", "(not published)"),
        ("s3://bucket/clip", "(not published)"),
    ],
)
def test_of_places_the_kind_is_published(encoder, published):
    text = published_text(TextConfig(encoder=encoder))
    assert (text.encoder, text.pretrained) == (published, "openai")
    assert has_own_place(text)
    assert published_text(text) == text


def test_a_folder_that_is_called_as_a_model_of_the_hub_is_a_place(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = published_text(TextConfig(encoder="sentence-transformers/owner/name"))
    assert text.encoder == "sentence-transformers/(not published)"


@pytest.mark.parametrize("path", ["/models/clip.pt", "clip.pt", "models/clip", "s3://bucket/clip"])
def test_a_path_of_weights_is_a_place_where_it_is_read(path):
    text = published_text(TextConfig(encoder="ViT-B-32", pretrained=path))
    assert text == TextConfig(encoder="ViT-B-32", pretrained="(not published)")
    assert has_own_place(text)
    unread = published_text(TextConfig(encoder="stand-in", pretrained=path))
    assert unread == TextConfig(encoder="stand-in")


def test_no_place_of_weights_of_the_backbone_is_published():
    overlay = {"file": "vit.pth", "hf_hub_id": "alice/secret", "num_classes": 3}
    kwargs = {"img_size": 32, "cache_dir": "/home/alice", "act_layer": "gelu", "block": ["a", "b"]}
    backbone = BackboneConfig(
        weights="/home/alice/vit.pth", kwargs=kwargs | {"pretrained_cfg_overlay": overlay}
    )
    published = published_config(ModelConfig(backbone=backbone))
    assert published.backbone.kwargs == {
        "img_size": 32,
        "act_layer": "gelu",
        "block": ["a", "b"],
        "pretrained_cfg_overlay": {"num_classes": 3},
    }
    assert "alice" not in str(asdict(published))
    assert not published.backbone.pretrained
