"""The names in and of checkpoint folders, their tags, and what is read from their text files."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from pipeline.checkpoints.files import (
    MOST_NAMED,
    VALIDATION,
    checkpoint_fingerprint,
    content_fingerprint,
    fingerprints,
    manifest_tags,
    only_manifest_tags,
    step_folder,
    step_of,
)
from pipeline.checkpoints.provenance import Provenance, open_checkpoint, read_provenance, save_model
from pipeline.checkpoints.whole import write_digests
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.mini_shards import tiny_model


def manifests(*names: str) -> dict[str, Any]:
    return {name: SimpleNamespace(fingerprint=f"print of {name}") for name in names}


def test_folders_are_named_after_their_step():
    assert step_folder(12) == "step_00000012"
    for place in (step_folder(12), f"s3://b/run/{step_folder(12)}/", f"/runs/{step_folder(12)}"):
        assert step_of(place) == 12
    assert [step_of(place) for place in ("best_00000012", "/runs", "step_x")] == [0, 0, 0]


def test_tags_name_each_dataset_and_of_very_many_one_digest():
    tags = manifest_tags(manifests("ade20k", "idd"))
    assert tags == {"manifest.ade20k": "print of ade20k", "manifest.idd": "print of idd"}
    assert fingerprints(tags | {"git_commit": "x"}) == {
        "ade20k": "print of ade20k",
        "idd": "print of idd",
    }
    many = manifest_tags(manifests(*map(str, range(MOST_NAMED + 1))))
    assert list(many) == ["manifests"]
    assert many["manifests"].endswith("(13 datasets)")
    assert fingerprints(many) == {}


def test_tags_of_training_and_validation_are_told_apart():
    few, many = manifests("a"), manifests(*map(str, range(MOST_NAMED + 1)))
    training = manifest_tags(few) | manifest_tags(many)
    validation = manifest_tags(few, VALIDATION) | manifest_tags(many, VALIDATION)
    assert set(validation) == {"validation.a", "validations"}
    both = training | validation | {"git_commit": "x"}
    assert only_manifest_tags(both) == training
    assert only_manifest_tags(both, VALIDATION) == validation


@pytest.fixture
def written() -> Provenance:
    return Provenance(
        ("wall", "traffic_light"),
        {"data": {"augment": {"base_px": 40}}, "run": {"name": "mine"}},
        {"git_commit": "abc", "manifest.ade20k": "1f"},
        texts=("wall", "traffic light"),
        metrics={"step": 7, "val/miou": 0.25},
    )


@pytest.mark.parametrize("remote", [False, True])
def test_what_was_written_is_read_again_from_any_storage(written, tmp_path, s3_bucket, remote):
    network = build_lseg(tiny_model(), 512)
    save_model(tmp_path, network, written)
    place = str(tmp_path)
    if remote:
        place = f"{s3_bucket}/mine/step_00000007"
        for path in tmp_path.iterdir():
            open_storage(place).upload(path.name, path)
    found = read_provenance(place)
    assert (found.labels, found.texts, found.metrics) == (
        written.labels,
        written.texts,
        written.metrics,
    )
    assert found.tags == {**written.tags, "step": "7"}
    assert found.group("data", "augment") == {"base_px": 40}
    assert found.group("data", "nothing", "below") == found.group("run", "name") == {}
    assert (found.step, found.datasets, found.is_known) == (7, ("ade20k",), True)
    assert found.config["model"]["backbone"]["name"] == "vit_tiny_patch16_224"
    assert LSeg.load(tmp_path).labels == written.texts


def test_a_checkpoint_without_its_text_files_says_nothing(tmp_path):
    found = read_provenance(tmp_path, "s3://bucket/run/step_00000009")
    assert (found.labels, found.config, found.metrics, found.is_known) == ((), {}, {}, False)
    assert found.step == 9


@pytest.mark.parametrize("step", ["True", "²", "-1", "9" * 5000, "1.5", ""])
def test_a_step_that_is_no_number_is_unknown(tmp_path, step):
    (tmp_path / "provenance.json").write_text(json.dumps({"step": step}))
    assert read_provenance(tmp_path).step == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("provenance.json", "{"),
        ("provenance.json", "[" * 100_000),
        ("metrics.json", "[1]"),
        ("config.yaml", "a: ["),
        ("config.yaml", "a: " + "[" * 5000),
        ("config.yaml", "a: &a [*a]"),
        ("labels.txt", "x" * 5_000_000),
    ],
    ids=["json", "deep json", "list", "yaml", "deep yaml", "alias", "long"],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"checkpoint={tmp_path}: {name} is damaged"):
        read_provenance(tmp_path)


def test_the_fingerprint_is_of_weights_and_settings_alone(written, tmp_path):
    torch.manual_seed(0)
    network = build_lseg(tiny_model(), 512)
    save_model(tmp_path, network, written)
    before = checkpoint_fingerprint(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    assert checkpoint_fingerprint(tmp_path) == before
    (tmp_path / "config.yaml").open("a").write("more: 1\n")
    assert checkpoint_fingerprint(tmp_path) != before


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint=.*no such file: name a checkpoint directory"):
        open_checkpoint(str(tmp_path))


def test_what_an_evaluation_reads_beside_the_model_is_compared_too(written, tmp_path):
    save_model(tmp_path, build_lseg(tiny_model(), 512), written)
    write_digests(tmp_path)
    assert open_checkpoint(str(tmp_path))[1].step == 7
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(ModelError, match=r"provenance\.json: has 2 bytes and had"):
        open_checkpoint(str(tmp_path))


def test_the_content_is_that_of_the_labels_too(written, tmp_path):
    save_model(tmp_path, build_lseg(tiny_model(), 512), written)
    before = content_fingerprint(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    assert content_fingerprint(tmp_path) == before
    (tmp_path / "labels.txt").write_text("other\n")
    changed = content_fingerprint(tmp_path)
    assert changed != before
    (tmp_path / "texts.txt").write_text("other\n")
    assert content_fingerprint(tmp_path) not in (changed, before)
