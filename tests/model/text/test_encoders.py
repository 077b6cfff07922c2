import subprocess
import sys

import numpy as np
import pytest
import torch

from model.config import TextConfig
from model.errors import ModelError
from model.stand_in import stand_in_semantics, stand_in_vectors
from model.text import OpenClipEncoder, StandInEncoder, build_text_encoder

FIRST_RED_CIRCLE = [0.499796, 0.367177, -0.027422]


def test_stand_in_is_fixed_for_ever():
    semantics = stand_in_semantics(["red circle", "other"])
    np.testing.assert_allclose(semantics[0, :3], FIRST_RED_CIRCLE, atol=1e-6)
    assert semantics[1].tolist() == [0.0] * 16 + [1.0]


def test_stand_in_vectors_keep_the_geometry_of_the_coordinates():
    labels = ["red circle", "red square", "blue square", "sky", "other", "chair other", "chair"]
    vectors, semantics = stand_in_vectors(labels), stand_in_semantics(labels)
    assert vectors.shape == (7, 512)
    assert vectors.dtype == semantics.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, semantics @ semantics.T, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > cosine[0, 2]
    assert np.abs(cosine[4, [0, 1, 2, 3, 5, 6]]).max() < 1e-6
    assert cosine[5, 6] == pytest.approx(1, abs=1e-6)


def test_stand_in_reads_words_whatever_parts_them():
    one = stand_in_vectors(["Traffic-Light"])
    for same in ("traffic light", "light traffic", "traffic_light", "TRAFFIC/LIGHT (other)"):
        np.testing.assert_allclose(stand_in_vectors([same]), one, atol=1e-6)
    assert (stand_in_vectors(["traffic"]) @ one.T).item() < 0.99


def test_stand_in_needs_no_torch():
    code = "import model.stand_in, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class CountingEncoder(StandInEncoder):
    chunk_size = 3

    def __init__(self, config):
        super().__init__(config)
        self.chunks = []

    def _forward(self, texts):
        self.chunks.append(list(texts))
        return 5 * super()._forward(texts)


def test_labels_are_encoded_once_in_chunks_and_normalised():
    encoder = CountingEncoder(TextConfig(encoder="stand-in"))
    labels = [f"word{index}" for index in range(7)]
    first = encoder.encode(labels)
    assert [len(chunk) for chunk in encoder.chunks] == [3, 3, 1]
    assert encoder.encode(tuple(labels)) is first
    assert len(encoder.chunks) == 3
    assert not first.requires_grad
    torch.testing.assert_close(first, torch.from_numpy(stand_in_vectors(labels)))
    encoder.encode(labels[::-1])
    assert len(encoder.chunks) == 6


def test_texts_beyond_the_context_are_named_with_their_tokens(caplog):
    encoder = OpenClipEncoder(TextConfig(encoder="ViT-B-32"))
    long = " ".join(f"word{number}" for number in range(40))
    assert encoder.max_tokens == 77
    assert encoder.num_tokens("dog") == 3  # With start and end.
    encoder._warn_of_cut(["dog", "a quite long label that fits " * 2, "cat " * 75])
    assert not caplog.messages
    encoder._warn_of_cut(["dog", "cat " * 76, long])
    (line,) = caplog.messages
    assert "ViT-B-32 reads 77 tokens" in line
    assert "78 in 'cat cat" in line
    assert f"{encoder.num_tokens(long)} in 'word0" in line
    # In every script, of which a character may be several tokens.
    caplog.clear()
    encoder._warn_of_cut(["道" * 60])
    assert encoder.num_tokens("道" * 60) > 77
    assert len(caplog.messages) == 1


def test_templates_wrap_the_label_and_are_averaged():
    encoder = CountingEncoder(TextConfig(encoder="stand-in", templates="photo of a {}"))
    encoder.encode(["cat"])
    assert encoder.chunks == [["photo of a cat"]]
    encoder = CountingEncoder(TextConfig(encoder="stand-in", templates="imagenet"))
    (vector,) = encoder.encode(["cat"])
    texts = [text for chunk in encoder.chunks for text in chunk]
    assert len(set(texts)) == 80
    assert all("cat" in text for text in texts)
    expected = stand_in_vectors(texts).mean(0)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_names_of_a_label_are_asked_as_the_setting_says():
    def asked(label: str, **values: str) -> tuple[list[str], np.ndarray]:
        encoder = CountingEncoder(TextConfig(encoder="stand-in", **values))
        (vector, _) = encoder.encode([label, "tree"])
        return [text for chunk in encoder.chunks for text in chunk], vector.numpy()

    texts, _ = asked("car, auto")
    assert texts == ["car, auto", "tree"]
    texts, first = asked("car, auto", synonyms="first")
    assert texts == ["car", "tree"]
    np.testing.assert_allclose(first, stand_in_vectors(["car"])[0], atol=1e-6)
    texts, mean = asked("car,auto,", synonyms="mean", templates="a {}\n{}s")
    assert texts == ["a car", "cars", "a auto", "autos", "a tree", "trees"]
    expected = stand_in_vectors(texts[:4]).mean(0)
    np.testing.assert_allclose(mean, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": "ViT-B-33"}, "did you mean 'ViT-B-32'"),
        ({"pretrained": "opnai"}, "did you mean 'openai'"),
        ({"pretrained": "missing.safetensors"}, "no such file"),
        ({"encoder": "sentence-transformers/all-MiniLM-L6-v2"}, "sentence-transformers"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_way_out(values, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=message):
        build_text_encoder(TextConfig(**values)).encode(["wall"])


def test_missing_weights_name_the_file_and_the_place_once_an_open_clip_is_wanted(tmp_path):
    code = (
        "import sys\n"
        "from model.text import build_text_encoder, TextEncoder\n"
        "from model.config import TextConfig\n"
        "print('open_clip' in sys.modules)\n"
        "build_text_encoder(TextConfig()).encode(['wall'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n"  # It is imported by those who need it.
    message = done.stderr.splitlines()[-1]
    assert "open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai" in message
    assert str(tmp_path) in message
    assert "text.pretrained" in message


@pytest.mark.parametrize("labels", [[], "wall"])
def test_labels_must_be_a_list(labels):
    with pytest.raises(ModelError, match="must be a list"):
        build_text_encoder(TextConfig(encoder="stand-in")).encode(labels)


def test_a_template_needs_a_place_for_the_label():
    with pytest.raises(ModelError, match=r"text\.templates"):
        TextConfig(templates="a photo")
    with pytest.raises(ModelError, match=r"text\.templates"):
        TextConfig(templates="a {}\na photo")
    with pytest.raises(ModelError, match="has 201 lines"):
        TextConfig(templates="{}\n" * 201)
    with pytest.raises(ModelError, match=r"text.synonyms='max': must be one of none, first, mean"):
        TextConfig(synonyms="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_folder_of_a_sentence_encoder_that_is_not_there_is_named(place):
    config = TextConfig(encoder=f"sentence-transformers/{place}")
    with pytest.raises(ModelError, match=rf"there is no folder '{place}': name one"):
        build_text_encoder(config)
