"""A run that starts from another one's weights: what is taken over, and what is refused."""

import shutil
from dataclasses import replace

import pytest
import torch

from model.checkpoint import save_checkpoint
from model.checkpoint_files import TEXT_WEIGHTS
from model.config import RegularizerConfig
from model.errors import ModelError
from pipeline.checkpoints.whole import write_digests
from pipeline.errors import UserError
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import label_space
from pipeline.training.saving import checkpoint
from pipeline.training.saving.checkpoint import provenance_of
from pipeline.training.state.state import build_state
from pipeline.training.state.warm_start import check_start, model_difference
from tests.support.mini_shards import tiny_model
from tests.support.tiny_clip import DIM, tiny_clip

CPU = torch.device("cpu")
CONFIG = TrainMixConfig(model=tiny_model(), train=TrainConfig(ema_decay=0.9, steps=50))


@pytest.fixture
def other(tmp_path):
    """A checkpoint of a network of another seed."""
    state = build_state(replace(CONFIG, run=RunConfig(seed=7)), 512, CPU)
    folder = tmp_path / "other"
    save_checkpoint(folder, state.lseg, ["road"])
    return state, folder


def started_from(folder) -> TrainMixConfig:
    return replace(CONFIG, run=RunConfig(start_from=str(folder)))


def test_weights_are_taken_over_and_nothing_else(other):
    before, folder = other
    config = started_from(folder)
    check_start(config)
    state = build_state(config, 512, CPU)
    for which in ("lseg", "evaluated"):
        found, wanted = getattr(state, which).state_dict(), before.lseg.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert state.step == 0
    assert not state.optimizer.state


def test_weights_that_are_not_the_recorded_ones_are_refused_before_workers_start(other):
    _, folder = other
    write_digests(folder)
    (folder / "labels.txt").unlink()  # A start takes the weights alone.
    check_start(started_from(folder))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    with pytest.raises(ModelError, match=r"model\.safetensors: is not what was written"):
        check_start(started_from(folder))


def test_a_start_takes_the_text_tower_that_was_trained(tmp_path):
    train = replace(CONFIG.train, text="attention-qv")
    config = replace(CONFIG, model=tiny_model(text=tiny_clip(tmp_path)), train=train)
    before = build_state(config, DIM, CPU)
    folder = tmp_path / "other"
    folder.mkdir()
    with torch.no_grad():
        for weight in before.evaluated.text_tower.parameters():
            weight += 0.1
    provenance = provenance_of(config, label_space(["road"]), {}, {})
    checkpoint.save(folder, checkpoint.content_of(before), provenance)
    config = replace(config, run=RunConfig(start_from=str(folder)))
    check_start(config)
    wanted = before.evaluated.text_tower.state_dict()
    found = build_state(config, DIM, CPU).lseg.text_tower.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # Another tower beside that network would answer wrongly.
    frozen = replace(config, train=CONFIG.train)
    with pytest.raises(UserError, match=r"a text encoder of its own .*model\.text\.pretrained"):
        check_start(frozen)
    copy = shutil.copyfile(folder / TEXT_WEIGHTS, tmp_path / "mine.safetensors")
    text = replace(config.model.text, pretrained=str(copy))
    check_start(replace(frozen, model=replace(config.model, text=text)))
    (folder / TEXT_WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"holds no text_encoder\.safetensors"):
        check_start(config)


def test_a_resumed_run_needs_the_other_checkpoint_no_more(other, tmp_path):
    _, folder = other
    config = started_from(folder)
    state = build_state(config, 512, CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"run.start_from=.*: its weights do not fit this run"):
        build_state(config, 512, CPU)
    build_state(config, 512, CPU, resumes=True)
    with pytest.raises(UserError, match=r"holds no model.safetensors: name the folder"):
        check_start(config)
    # What the run saves says the recipe's own network, so that it resumes under that recipe.
    checkpoint.save(
        tmp_path,
        checkpoint.content_of(state),
        provenance_of(config, label_space(["road"]), {"step": 0}, {}),
    )
    text = (tmp_path / "config.yaml").read_text()
    assert f"pretrained: {str(config.model.backbone.pretrained).lower()}" in text


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, ""),
        ({"activation_checkpointing": True}, ""),
        ({"features": 32}, "model.features (32, now 16)"),
        (
            {"regularizer": RegularizerConfig(kind="depthwise", depth=2)},
            "model.regularizer.depth (2, now 0)",
        ),
    ],
)
def test_another_network_is_named(change, difference):
    assert model_difference(replace(tiny_model(), **change), tiny_model()) == difference


def test_published_weights_and_templates_do_not_matter():
    model = tiny_model()
    other = replace(
        model,
        backbone=replace(model.backbone, pretrained=True),
        text=replace(model.text, templates="imagenet"),
    )
    assert model_difference(other, model) == ""
    other = replace(model, text=replace(model.text, encoder="RN50"))
    assert model_difference(other, model) == "model.text.encoder ('RN50', now 'stand-in')"


def test_a_start_from_another_network_is_refused(other):
    config = started_from(other[1])
    with pytest.raises(UserError, match=r"is a network with another model.features \(16, now 8\)"):
        check_start(replace(config, model=replace(config.model, features=8)))


def test_a_start_from_nowhere_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"run.start_from=.*: name the folder of a checkpoint"):
        check_start(started_from(tmp_path))
