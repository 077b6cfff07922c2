"""What of a run may change between two calls, and how everything else is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.checkpoints.files import step_folder
from pipeline.data.ingest.augment import JitterConfig
from pipeline.errors import UserError
from pipeline.training.config import OtherConfig, TrainMixConfig
from pipeline.training.driver.launch import plan_run
from pipeline.training.driver.resumable import check_resumable
from pipeline.training.questions.labels import LabelSpace, label_space
from pipeline.training.saving.checkpoint import content_of, provenance_of, save
from pipeline.training.state.state import build_state
from tests.support.mini_shards import MiniShards

STEP = 0


@pytest.fixture(scope="module")
def trained(
    mini_shards: MiniShards, tmp_path_factory
) -> tuple[TrainMixConfig, LabelSpace, dict[str, str]]:
    """Configuration, labels and shards of a run with a checkpoint, as a later call gives them."""
    config = mini_shards.config(tmp_path_factory.mktemp("runs"), "whole", batch_size=2)
    plan = plan_run(config)
    folder = Path(config.run.storage) / config.run.name / step_folder(STEP)
    folder.mkdir(parents=True)
    # The files are those that a worker writes; nothing needs to be trained for them.
    state = build_state(plan.config, 512, torch.device("cpu"))
    provenance = provenance_of(plan.config, plan.labels, {}, plan.manifest_tags)
    save(folder, content_of(state), provenance)
    return config, plan.labels, plan.manifest_tags


def test_settings_that_do_not_change_the_past_may_change(trained):
    config, labels, shards = trained
    train = replace(
        config.train, steps=99, lr=0.1, weight_decay=0.0, accumulate=2, log_every=1,
        validate_every=5, keep_checkpoints=5, precision="bf16", ema_decay=0.9,
    )  # fmt: skip
    later = replace(
        config,
        data=replace(config.data, num_loaders=3, cache_gib=1.0, shards="s3://moved/there"),
        model=replace(config.model, activation_checkpointing=True),
        train=train,
        cluster=replace(config.cluster, num_workers=1, max_failures=9),
    )
    check_resumable(later, labels, shards, STEP)
    with pytest.raises(UserError, match=r"train\.labels"):
        check_resumable(later, label_space(labels.names[1:]), shards, STEP)
    with pytest.raises(UserError, match=r"words for a label \('\w.*', now '\w.*'\)"):
        check_resumable(later, replace(labels, verbatim=True), shards, STEP)


def test_a_checkpoint_of_an_older_program_has_the_defaults(trained, tmp_path):
    config, labels, shards = trained
    whole = Path(config.run.storage) / config.run.name
    shutil.copytree(whole, tmp_path / config.run.name)
    config = replace(config, run=replace(config.run, storage=str(tmp_path)))
    path = tmp_path / config.run.name / step_folder(STEP) / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    for group, key in (("train", "other"), ("train", "label_sets"), ("data", "caps")):
        del saved[group][key]
    path.write_text(yaml.safe_dump(saved))
    check_resumable(config, labels, shards, STEP)
    other = replace(config, train=replace(config.train, label_sets="own"))
    with pytest.raises(UserError, match=r"train\.label_sets \('union', now 'own'\)"):
        check_resumable(other, labels, shards, STEP)


def test_every_difference_in_the_data_is_named_with_both_values(trained):
    config, labels, shards = trained
    augment = replace(
        config.data.augment, flip_probability=0.25, jitter=JitterConfig(brightness=0.5)
    )
    data = replace(
        config.data, weights="size", temperature=0.5, caps={"cityscapes": 3}, augment=augment
    )
    train = replace(config.train, optimizer="adamw", label_sets="own", other=OtherConfig(share=0.5))
    other = replace(config, data=data, train=train)
    now = {**shards, "manifest.cityscapes": "0" * 16}
    with pytest.raises(UserError) as error:
        check_resumable(other, labels, now, STEP)
    for words in (
        "run.name=whole: ",
        "data.weights ('equal', now 'size')",
        "data.temperature (1.0, now 0.5)",
        "data.caps.cityscapes (None, now 3)",
        "data.augment.flip_probability (0.5, now 0.25)",
        "data.augment.jitter.brightness (0.0, now 0.5)",
        "train.optimizer ('sgd', now 'adamw')",
        "train.label_sets ('union', now 'own')",
        "train.other.share (0.0, now 0.5)",
        f"data.shards.manifest.cityscapes ('{shards['manifest.cityscapes']}', now '{'0' * 16}')",
        "give the run another name",
    ):
        assert words in str(error.value)
    assert "manifest.ade20k" not in str(error.value)
    fewer = {tag: value for tag, value in shards.items() if tag != "manifest.ade20k"}
    with pytest.raises(UserError, match=r"manifest\.ade20k \('\w{16}', now None\)"):
        check_resumable(config, labels, fewer, STEP)
