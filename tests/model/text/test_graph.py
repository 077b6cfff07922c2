import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model.config import TextConfig
from model.errors import ModelError
from model.packages import TEXT_PACKAGES, package_of
from model.text import build_text_encoder
from model.text.graph import text_graph
from tests.support.tiny_clip import tiny_clip

TEXTS = [
    "road",
    "a photo of a Traffic  Light in the scene",
    "traffic_light, 2nd-hand",
    "nai\u0308ve caf\u00e9 \u00c9",
    "it's the dog's",
    "\u9053\u8def \U0001f600",
    "word " * 120,
]


def is_installed(name: str) -> bool:
    try:
        package_of(TEXT_PACKAGES, name, "text.encoder").checked("here")
    except ModelError:
        return False
    return True


def tokens_of(tokenizer: str, texts: list[str]) -> np.ndarray:
    reader = Tokenizer.from_str(tokenizer)
    return np.array([encoding.ids for encoding in reader.encode_batch(texts)])


def test_clip_s_tokens_and_vectors_are_those_of_open_clip(tmp_path):
    encoder = build_text_encoder(tiny_clip(tmp_path))
    graph = text_graph(encoder)
    tokens = tokens_of(graph.tokenizer, TEXTS)
    assert tokens.shape == (len(TEXTS), 77) == (len(TEXTS), graph.length)
    np.testing.assert_array_equal(tokens, encoder.tokenizer(TEXTS).numpy())
    found = graph.module(torch.from_numpy(tokens))
    torch.testing.assert_close(found, encoder.encode(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.skipif(
    not is_installed("package:all-minilm-l6-v2"), reason="the package is not installed"
)
def test_a_package_s_tower_takes_texts_of_any_length():
    encoder = build_text_encoder(TextConfig(encoder="package:all-minilm-l6-v2"))
    graph = text_graph(encoder)
    assert graph.length == 0
    for texts in (TEXTS, TEXTS[:1]):
        tokens = tokens_of(graph.tokenizer, texts)
        assert tokens.shape[1] <= encoder.max_tokens
        found = graph.module(torch.from_numpy(tokens))
        torch.testing.assert_close(found, encoder.encode(texts), rtol=0, atol=1e-6)


def test_an_encoder_without_a_tower_is_refused():
    with pytest.raises(ModelError, match=r"text\.encoder=stand-in: cannot be written as a text"):
        text_graph(build_text_encoder(TextConfig(encoder="stand-in")))
