from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.limits import MAX_PARAM_CHARS
from pipeline.tracking.redaction import (
    flatten_config,
    is_secret_key,
    redact_text,
    redact_tree,
)
from tests.support.cpu_cost import costs_at_most


@dataclass(frozen=True, kw_only=True)
class Store:
    uri: str = "s3://lake:hunter2@minio:9000/shards"
    secret_key: str = "hunter2"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    lr: float = 0.01
    hooks: tuple[int, ...] = (5, 11)
    out: Path = Path("/runs/a")
    store: Store = field(default_factory=Store)
    stages: tuple[Store, ...] = (Store(uri="/local"),)
    weights: dict[str, float] = field(default_factory=lambda: {"coco": 0.5})


@pytest.mark.parametrize(
    "key", ["AWS_SECRET_ACCESS_KEY", "db.password", "hfToken", "apiKey", "access-key", "my_secret"]
)
def test_secret_keys(key):
    assert is_secret_key(key)


@pytest.mark.parametrize("key", ["text.tokenizer", "tokenization", "lr", "key", "access", "passes"])
def test_ordinary_keys(key):
    assert not is_secret_key(key)


def test_flatten_config_gives_dotted_keys_and_leaves_secrets_out():
    assert flatten_config(Recipe()) == {
        "lr": "0.01",
        "hooks": "[5, 11]",
        "out": "/runs/a",
        "store.uri": "s3://***@minio:9000/shards",
        "stages.0.uri": "/local",
        "weights.coco": "0.5",
    }


def test_long_values_are_cut_to_the_limit_of_mlflow():
    value = flatten_config({"labels": "x" * (MAX_PARAM_CHARS + 1)})["labels"]
    assert len(value) == MAX_PARAM_CHARS
    assert value.endswith("...")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:pa@ss@host:5000/x", "http://***@host:5000/x"),
        ("see https://ghp_x@github.com/a", "see https://***@github.com/a"),
        ("s3://b/k?X-Amz-Signature=abc&v=1", "s3://b/k?X-Amz-Signature=***&v=1"),
        ("key AKIAABCDEFGHIJKLMNOP.", "key ***."),
        ("postgresql+psycopg2://u:p@db/m", "postgresql+psycopg2://***@db/m"),
        ("mail a@b.c about http://host/d@e", "mail a@b.c about http://host/d@e"),
    ],
)
def test_redact_text(text, clean):
    assert redact_text(text) == clean


@pytest.mark.parametrize(
    "part", ["a", "?", "a://", "?a", "?token", "x://a:", "&token=", "AKIA"], ids=range(8)
)
def test_a_long_text_takes_no_longer_than_its_length(part):
    """Tags of a checkpoint are texts of megabytes, and anybody's."""
    with costs_at_most(100):
        redact_text(part * 200_000)


def test_values_of_secret_variables_are_masked(monkeypatch):
    monkeypatch.setenv("LAKE_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("LAKE_TOKEN_FILE", "/var/run/lake")
    assert redact_text("k=wJalrXUtnFEMI in /var/run/lake") == "k=*** in /var/run/lake"


_KEYS = st.sampled_from(["lr", "password", "seed", "api_key", "name"])
_TREES = st.recursive(
    st.integers() | st.none() | st.just("SECRET-VALUE") | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


def _keys(tree):
    if isinstance(tree, dict):
        return set(tree) | {key for value in tree.values() for key in _keys(value)}
    return {key for item in tree for key in _keys(item)} if isinstance(tree, list) else set()


@given(_TREES)
def test_no_secret_key_survives_at_any_depth(tree):
    assert _keys(redact_tree(tree)) <= {"lr", "seed", "name"}


@given(_TREES)
def test_a_clean_tree_is_kept(tree):
    clean = redact_tree(tree)
    assert redact_tree(clean) == clean
