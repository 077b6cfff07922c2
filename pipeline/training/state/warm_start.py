"""Starts a run from the weights of another run's checkpoint.

Only weights and batch-norm statistics are taken over; optimiser, schedule and step are new. Labels
may differ: the network has no weights of single labels.
"""

import filecmp
from dataclasses import replace
from pathlib import Path

from model.checkpoint import local
from model.checkpoint_files import (
    TEXT_WEIGHTS,
    WEIGHTS,
    below_a_run,
    check_files,
    read_model_config,
)
from model.config import ModelConfig, TextConfig
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from model.outline import load_weights
from pipeline.checkpoints import resolvers  # noqa: F401  # s3:// and models:/
from pipeline.errors import UserError
from pipeline.tracking.redaction import leaves
from pipeline.training.config import TrainMixConfig, plain

_FREE = (
    "backbone.pretrained",
    "backbone.weights",
    "activation_checkpointing",
    "regularizer.init",
    "text.templates",
    "text.synonyms",
)
"""Settings of the network that do not decide whether weights fit."""


def build_warm(config: TrainMixConfig, embed_dim: int, resumes: bool) -> LSeg:
    """The network with the weights of `run.start_from`, on the CPU.

    One that `resumes` keeps random weights: a checkpoint of the run itself will replace them.

    Raises:
        UserError: There is no such checkpoint, or it does not fit the network.
    """
    # The file brings every weight: the published ones are not to be fetched first.
    backbone = replace(config.model.backbone, pretrained=False, weights="")
    lseg = build_lseg(replace(config.model, backbone=backbone), embed_dim)
    lseg.config = config.model
    if resumes:
        return lseg
    folder = _fetched(config)
    try:
        lseg.load_state_dict(load_weights(folder / WEIGHTS, lseg.state_dict(), "this run's model"))
    except ModelError as error:
        raise UserError(
            f"run.start_from={config.run.start_from}: its weights do not fit this run: {error}: "
            "name another checkpoint, or leave it out"
        ) from None
    return lseg


def tower_at_start(config: TrainMixConfig, resumes: bool) -> TextConfig:
    """Which weights a text tower that is trained begins with: those of `run.start_from`, if any.

    One that `resumes` will have its weights replaced.
    """
    text = config.model.text
    if config.run.start_from and not resumes and has_own_tower(folder := _fetched(config)):
        return replace(text, pretrained=str(folder / TEXT_WEIGHTS))
    return text


def has_own_tower(folder: Path) -> bool:
    """Whether a checkpoint brings the text tower that its network was trained with."""
    return read_model_config(folder).text.pretrained == TEXT_WEIGHTS


def check_start(config: TrainMixConfig) -> None:
    """Refuses a start from a checkpoint that is not there or is of another network.

    Raises:
        UserError: Says what differs.
        ModelError: Its weights are not those that were written.
    """
    if not config.run.start_from:
        return
    folder = _fetched(config)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"run.start_from={config.run.start_from}: holds no {WEIGHTS}: name the folder of a "
            f"checkpoint{below_a_run(folder)}"
        )
    check_files(folder, (WEIGHTS,))
    if has_own_tower(folder):
        _check_tower(config, folder / TEXT_WEIGHTS)
    if difference := model_difference(read_model_config(folder), config.model):
        raise UserError(
            f"run.start_from={config.run.start_from}: is a network with another {difference}: "
            "restore the setting, or train afresh"
        )


def _check_tower(config: TrainMixConfig, tower: Path) -> None:
    """Refuses to put another text tower beside a network that was trained with its own."""
    check_files(tower.parent, (tower.name,))
    if not tower.is_file():
        raise UserError(
            f"run.start_from={config.run.start_from}: holds no {TEXT_WEIGHTS}, which its "
            "config.yaml names as the weights of its text encoder: copy it there, or name another "
            "checkpoint"
        )
    named = Path(config.model.text.pretrained)
    is_named = named.is_file() and filecmp.cmp(named, tower, shallow=False)
    if config.train.text != "frozen" or is_named:
        return
    raise UserError(
        f"run.start_from={config.run.start_from}: was trained with a text encoder of its own "
        f"({TEXT_WEIGHTS}), and model.text.pretrained={config.model.text.pretrained} is another: "
        "set train.text=attention-qv to train it further, or name a copy of that file as "
        "model.text.pretrained"
    )


def model_difference(before: ModelConfig, now: ModelConfig) -> str:
    """The first setting by which the weights of one network do not fit another; "" for none."""
    old, new = dict(leaves(plain(before))), dict(leaves(plain(now)))
    if old.get("text.pretrained") == TEXT_WEIGHTS:  # See `_check_tower`.
        old["text.pretrained"] = new["text.pretrained"]
    for key in sorted({*old, *new}):
        if key not in _FREE and old.get(key) != new.get(key):
            return f"model.{key} ({old.get(key)!r}, now {new.get(key)!r})"
    return ""


def _fetched(config: TrainMixConfig) -> Path:
    """The checkpoint on this machine."""
    uri = config.run.start_from
    try:
        return local(uri)
    except FileNotFoundError as error:
        raise UserError(f"run.start_from={uri}: {error}") from None
