"""The optional sentence-transformers encoder, on a tiny model that is made here."""

import json

import pytest
import torch

from model.config import TextConfig
from model.text import build_text_encoder

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="the extra sentence-transformers is not installed"
)


@pytest.fixture
def folder(tmp_path):
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wall", "traffic", "light", "sky"]
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(words))
    (bert / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16}))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(bert)
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    transformer = Transformer(str(bert))
    model = sentence_transformers.SentenceTransformer(
        modules=[transformer, Pooling(24)], device="cpu"
    )
    model.save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_labels_become_unit_vectors_of_the_models_width(folder):
    encoder = build_text_encoder(TextConfig(encoder=f"sentence-transformers/{folder}"))
    assert encoder.dim == 24
    vectors = encoder.encode(["wall", "traffic light", "sky"])
    assert vectors.shape == (3, 24)
    assert not vectors.requires_grad
    assert not vectors.is_inference()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(
        ["sky"], normalize_embeddings=True, convert_to_tensor=True
    )
    torch.testing.assert_close(vectors[2:], expected, rtol=1e-4, atol=1e-5)
