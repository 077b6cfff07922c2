"""Label vectors of a file: GloVe's form, word2vec's, and labels of several words."""

import numpy as np
import pytest
import torch

from model.config import TextConfig
from model.errors import ModelError
from model.text import build_text_encoder

GLOVE = "dog 1 0 0\ncat 0.8 0.6 0\n, 0 0 1\n"


def encoder(tmp_path, content: str):
    (tmp_path / "t.txt").write_text(content, encoding="utf-8")
    return build_text_encoder(TextConfig(encoder=f"table:{tmp_path / 't.txt'}"))


@pytest.mark.parametrize("head", ["", "3 3\n"])
def test_the_vectors_are_those_of_the_lines(tmp_path, head):
    found = encoder(tmp_path, head + GLOVE)
    assert found.dim == 3
    expected = torch.tensor([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(found.encode(["cat", "Dog"]), expected)


def test_labels_of_several_words_and_of_every_script(tmp_path):
    found = encoder(tmp_path, "traffic light\t3 4\n道路\t0\t-2\r\n\nnew york 1 0\ndog 0 1\n")
    expected = np.array([[0.6, 0.8], [0, -1], [1, 0], [0, 1]], np.float32)
    labels = ["traffic light", "道路", "new york", "dog"]
    np.testing.assert_allclose(found.encode(labels), expected)


def test_a_label_that_it_lacks_is_named_with_the_nearest(tmp_path):
    found = encoder(tmp_path, GLOVE)
    with pytest.raises(ModelError, match=r"t\.txt: holds no vector for 'dogs': did you mean 'dog'"):
        found.encode(["cat", "dogs"])
    with pytest.raises(ModelError, match="'a', 'b', 'c', 'd', 'e' and 1 more"):
        found.encode(list("abcdef"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be a word and at least 2"),
        ("dog\n", "must be a word and at least 2"),
        ("dog 1 2\ncat 1\n", "holds 1 numbers, the first 2"),
        ("dog 1 2\ncat\t1 2 3\n", "holds 3 numbers, the first 2"),
        ("dog 1 2\ncat 1 x\n", "no number"),
        ("dog 1 2\ncat 1 nan\n", "no finite vector"),
        ("dog 1 2\ncat 0 0\n", "no finite vector"),
        ("dog\tx 2\n", "no number"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    with pytest.raises(ModelError, match=message) as caught:
        encoder(tmp_path, content).encode(["cat"])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path, what in ((tmp_path / "no.txt", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ModelError, match=rf"text\.encoder=table:{path}: {what}"):
            build_text_encoder(TextConfig(encoder=f"table:{path}"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe 1 2\n")
    with pytest.raises(ModelError, match="line 1 is none of a table"):
        build_text_encoder(TextConfig(encoder=f"table:{tmp_path / 'bytes.txt'}"))


def test_a_line_that_is_longer_than_any_vector_is_refused_not_cut(tmp_path):
    with pytest.raises(ModelError, match="line of more than 2097152 bytes"):
        encoder(tmp_path, GLOVE + "x" * 2**21 + " 1 2 3\n").encode(["cat"])


def test_a_table_that_changes_gives_no_vector_of_another_label(tmp_path):
    found = encoder(tmp_path, GLOVE)
    found.encode(["dog"])
    for changed in (GLOVE.replace("cat", "cow"), "\n" + GLOVE):
        (tmp_path / "t.txt").write_text(changed)
        with pytest.raises(ModelError, match="has changed while it was read"):
            found.encode(["cat"])
