"""A text tower that is trained encodes as the frozen encoder does, and gives gradients."""

import pytest
import torch

from model.config import TextConfig
from model.errors import ModelError
from model.text import build_text_encoder, tokens_of, trained_tower
from tests.support.tiny_clip import DIM, tiny_clip

LABELS = ["road", "traffic light", "car, auto", "sky"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"templates": "cat-seg"},
        {"templates": "a photo of a {}.\nthere is {}", "synonyms": "first"},
        {"templates": "a {}\nthe {}\nmy {}", "channels": True},
    ],
)
def test_it_encodes_as_the_frozen_encoder_does(tmp_path, settings):
    config = tiny_clip(tmp_path, **settings)
    expected = build_text_encoder(config).encode(LABELS)
    tower, tokens = trained_tower(config), tokens_of(config, LABELS)
    found = tower(tokens)
    assert found.shape == (4, DIM * (3 if settings.get("channels") else 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tower.encode(tokens.repeat(150, 1, 1))[-4:], found)
    assert not found.requires_grad  # A copy of a frozen tower.
    tower.requires_grad_(True)
    tower(tokens)[0, 0].backward()
    # Weights of its own: the encoder's stay as they were.
    with torch.no_grad():
        for weight in tower.parameters():
            weight += 0.1
    assert torch.equal(build_text_encoder(config).encode(LABELS), expected)


def test_labels_of_several_names_need_one_number_of_them(tmp_path):
    config = tiny_clip(tmp_path, synonyms="mean")
    with pytest.raises(ModelError, match=r"text\.synonyms=mean: gives labels 1 to 2 texts"):
        tokens_of(config, LABELS)
    assert tokens_of(config, ["car, auto", "road, way"]).shape == (2, 2, 77)


def test_what_has_no_tower_is_refused():
    for make in (trained_tower, lambda config: tokens_of(config, LABELS)):
        with pytest.raises(ModelError, match=r"text\.encoder=stand-in: cannot be trained"):
            make(TextConfig(encoder="stand-in"))
