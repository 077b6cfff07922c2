"""A checkpoint names its text encoder; nobody is led anywhere by that."""

import pytest

from model.checkpoint import ENCODER, PRETRAINED, followed, text_variables
from model.checkpoint_files import TEXT_WEIGHTS
from model.config import TextConfig
from model.errors import ModelError

PLACES = [
    "local-dir:/tmp/evil",
    "hf-hub:evil/x",
    "hf-hub:timm/vit_base_patch32_clip_224.openai",
    "sentence-transformers//tmp/evil",
    "sentence-transformers/evil/x",
    "sentence-transformers/all-MiniLM-L6-v2",
    "/tmp/evil",
    "./evil",
    "..",
    "evil/x",
    "s3://evil/x",
    "a\nb",
]


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.delenv(ENCODER, raising=False)
    monkeypatch.delenv(PRETRAINED, raising=False)


@pytest.mark.parametrize("encoder", PLACES)
def test_a_place_in_a_checkpoint_is_not_followed(tmp_path, encoder):
    with pytest.raises(ModelError, match=r"model\.text\.encoder=.*is not followed.*LSEG_TEXT"):
        followed(TextConfig(encoder=encoder), tmp_path)


@pytest.mark.parametrize(
    "pretrained", ["/tmp/w.pt", "w.safetensors", "evil.bin", "a/b", "hf-hub:x", "http://e/x.npz"]
)
def test_weights_elsewhere_are_not_followed_either(tmp_path, pretrained, monkeypatch):
    named = TextConfig(encoder="ViT-B-32", pretrained=pretrained)
    with pytest.raises(ModelError, match=r"model\.text\.pretrained=.*is not followed"):
        followed(named, tmp_path)
    monkeypatch.setenv(PRETRAINED, "/mine/w.pt")
    assert followed(named, tmp_path) == TextConfig(encoder="ViT-B-32", pretrained="/mine/w.pt")
    assert text_variables() == {PRETRAINED: "/mine/w.pt"}


@pytest.mark.parametrize(
    ("encoder", "pretrained"),
    [
        ("stand-in", "openai"),
        ("stand-in", "/whatever/is/not/read"),
        ("ViT-B-32-quickgelu", "openai"),
        ("RN50x4-quickgelu", "openai"),
        ("ViT-SO400M-14-SigLIP-384", "webli"),
        ("EVA02-L-14", "merged2b_s4b_b131k"),
    ],
)
def test_names_of_the_libraries_own_lists_are_followed(tmp_path, encoder, pretrained, monkeypatch):
    named = TextConfig(encoder=encoder, pretrained=pretrained)
    assert followed(named, tmp_path) == named
    monkeypatch.setenv(ENCODER, "local-dir:/mine")  # For checkpoints that need it alone.
    assert followed(named, tmp_path) == named


@pytest.mark.parametrize("encoder", PLACES)
def test_the_user_names_the_place_instead(tmp_path, encoder, monkeypatch):
    named = TextConfig(encoder=encoder, templates="imagenet")
    mine = "sentence-transformers//mine"
    expected = TextConfig(encoder=mine, templates="imagenet")
    assert followed(named, tmp_path, TextConfig(encoder=mine)) == expected
    monkeypatch.setenv(ENCODER, mine)
    assert followed(named, tmp_path) == expected


def test_a_folder_of_the_user_takes_no_weights_that_the_checkpoint_names(tmp_path, monkeypatch):
    named = TextConfig(encoder="local-dir:/theirs", pretrained="/theirs/w.pt")
    monkeypatch.setenv(ENCODER, "local-dir:/mine")
    with pytest.raises(ModelError, match=r"text\.pretrained='/theirs/w\.pt'"):
        followed(named, tmp_path)


def test_no_weights_of_the_user_stand_for_the_tower_beside_the_network(tmp_path, monkeypatch):
    (tmp_path / TEXT_WEIGHTS).write_bytes(b"")
    named = TextConfig(encoder="local-dir:/clip", pretrained=TEXT_WEIGHTS)
    own = TextConfig(encoder="local-dir:/clip", pretrained="/clip/published.safetensors")
    assert followed(named, tmp_path, own).pretrained == str(tmp_path / TEXT_WEIGHTS)
    monkeypatch.setenv(ENCODER, own.encoder)
    monkeypatch.setenv(PRETRAINED, own.pretrained)
    assert followed(named, tmp_path).pretrained == str(tmp_path / TEXT_WEIGHTS)


def test_the_text_tower_beside_the_network_is_taken_from_there_alone(tmp_path, monkeypatch):
    named = TextConfig(encoder="ViT-B-32", pretrained=TEXT_WEIGHTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / TEXT_WEIGHTS).write_bytes(b"")  # In the working folder, not in the checkpoint's.
    with pytest.raises(ModelError, match="no such file"):
        followed(named, tmp_path / "checkpoint")
    assert followed(named, tmp_path).pretrained == str(tmp_path / TEXT_WEIGHTS)
