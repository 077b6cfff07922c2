"""Fingerprints and how they differ; the stored attempt; settings that are refused."""

import json
from dataclasses import replace

import mlflow
import pytest

from jobs.cli import main, parse
from pipeline.errors import UserError
from pipeline.registry.locks import LockConfig
from pipeline.retraining.config import RetrainConfig
from pipeline.retraining.data import DataState, changes
from pipeline.retraining.state import PHASES, Attempt, StateFile
from pipeline.storage.open import open_storage

DATA = DataState({"manifest.ade20k": "1a", "manifest.idd": "2b"}, {"validation.ade20k": "3c"})


@pytest.mark.parametrize(
    ("known", "found"),
    [
        (DATA.tags, []),
        (DATA.tags | {"git_commit": "0", "manifestation": "1"}, []),
        ({"manifest.ade20k": "1a", "manifest.idd": "2b"}, []),  # Not known what it was judged on.
        (DATA.tags | {"manifest.idd": "0"}, ["training shards of idd changed (0 -> 2b)"]),
        (DATA.tags | {"validation.ade20k": "0"}, ["validation shards of ade20k changed (0 -> 3c)"]),
        ({"manifest.ade20k": "1a"}, ["training shards of idd are new"]),
        (DATA.tags | {"manifest.coco": "7"}, ["training shards of coco are gone"]),
        ({"manifests": "9 (80 datasets)"}, 3),
        ({}, ["the champion does not say what it was trained on"]),
    ],
)
def test_what_changed_is_said(known, found):
    said = changes(known, DATA)
    assert len(said) == found if isinstance(found, int) else said == found


def test_the_key_changes_with_any_fingerprint_and_not_with_their_order():
    turned = DataState(dict(reversed(DATA.training.items())), DATA.validation)
    assert turned.key == DATA.key
    other = [
        replace(DATA, training=DATA.training | {"manifest.idd": "2c"}),
        replace(DATA, validation={"validation.ade20k": "3d"}),
        replace(DATA, validation={}),
    ]
    assert len({DATA.key, *(data.key for data in other)}) == 4


def attempt(**values) -> Attempt:
    given = {"id": "ab", "run_name": "lseg-ab", "training": DATA.training, "why": ("new",)}
    given |= {"validation": DATA.validation, "start": "fresh", "start_from": "", "champion": ""}
    return Attempt(**(given | {"began": "noon"} | values))


@pytest.mark.parametrize("phase", PHASES)
def test_an_attempt_is_read_as_it_was_written(tmp_path, phase):
    file = StateFile(open_storage(str(tmp_path)))
    assert file.read() is None
    written = attempt(phase=phase, figures={"1": {"miou": 0.1}}, decision={"promote": True})
    file.write(attempt())
    file.write(written)
    assert file.read() == written


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 3, "attempt": {}}',
        b'{"format": 2, "attempt": {}}',
        b'{"format": 1, "attempt": {"id": "a"}}',
        b"[" * 100_000,
    ],
    ids=len,
)
def test_a_damaged_state_is_told(tmp_path, content):
    storage = open_storage(str(tmp_path))
    storage.write("state.json", content)
    with pytest.raises(UserError, match=r"is damaged .*: delete it; the champion stays"):
        StateFile(storage).read()


def test_a_state_of_the_first_format_is_read(tmp_path):
    storage = open_storage(str(tmp_path))
    file = StateFile(storage)
    file.write(attempt(figures={"1": {"miou": 0.1}}, compared_by="ab"))
    content = json.loads(storage.read("state.json"))
    del content["attempt"]["compared_by"]
    storage.write("state.json", json.dumps(content | {"format": 1}).encode())
    assert file.read() == attempt(figures={"1": {"miou": 0.1}})
    storage.write("state.json", json.dumps(content).encode())
    with pytest.raises(UserError, match="KeyError: 'compared_by'"):
        file.read()


def test_the_key_of_a_comparison_changes_with_all_but_its_workers():
    words = ["--comparison.max_images=3", "--comparison.geometry.base_px=64"]
    words += ["--comparison.precision=bf16", "--comparison.other.policy=prompts"]
    keys = {parse(RetrainConfig, [word]).comparison.key for word in words}
    plain = RetrainConfig().comparison.key
    assert len(keys | {plain}) == 5
    assert parse(RetrainConfig, ["--comparison.workers.num_workers=3"]).comparison.key == plain


def test_a_state_of_an_unknown_phase_is_told(tmp_path):
    storage = open_storage(str(tmp_path))
    file = StateFile(storage)
    file.write(attempt())
    text = storage.read("state.json").decode().replace('"planned"', '"praised"')
    assert json.loads(text)
    storage.write("state.json", text.encode())
    with pytest.raises(UserError, match="phase 'praised': must be one of planned"):
        file.read()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--margin", "2"], "margin=2.0: must lie between 0 and 1"),
        (["--max_drop", "-0.1"], "max_drop=-0.1: must lie between 0 and 1"),
        (["--start", "luke"], "luke"),
        (["--registry.name", "a/../b"], "registry.name='a/../b': must be at most 200 letters"),
        (["--registry.name", "a" * 201], "a': must be at most 200 letters"),
        (["--run.start_from", "x"], "run.start_from=x: has no meaning here"),
        (["--train.test_fold", "1"], "train.test_fold=1: a few-shot fold has no validation"),
        (["--lock.beat_s", "60"], "lock.beat_s=60: must be above 0 and at most a quarter"),
        (["--rollback", "--force"], "force=True: has no effect with rollback"),
        (["--rollback", "--margin", "0.1"], "margin=0.1: has no effect with rollback"),
        (["--comparison.max_images", "-1"], "comparison.max_images=-1: must be 0 or more"),
        (["--data.shards", ""], "data.shards: not set"),
    ],
)
def test_a_wrong_setting_is_one_plain_message(words, message, capsys, tmp_path, monkeypatch):
    from jobs.retrain import run

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, uri)  # The job sets them, and later tests must not see it.
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    words = ["--run.storage", str(tmp_path), *words]
    assert main(RetrainConfig, run, words) == 2
    assert message in capsys.readouterr().err


def test_flags_stand_alone_or_with_their_value():
    for words in (["--force"], ["--force", "--margin", "0.1"], ["--margin=0.1", "--force", "true"]):
        assert parse(RetrainConfig, words).force
    assert parse(RetrainConfig, ["--rollback", "true", "--run.name", "x"]).rollback
    assert parse(RetrainConfig, ["--run.name", "x", "--rollback"]).rollback
    assert not parse(RetrainConfig, ["--force", "false"]).force
    assert not parse(RetrainConfig, ["--force=false", "--rollback"]).force


def test_the_defaults_of_the_lock_are_allowed():
    assert LockConfig().expires_s > 4 * LockConfig().beat_s
