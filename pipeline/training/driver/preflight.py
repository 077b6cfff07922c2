"""Finds what cannot work about a run in the process that starts it, before any worker does."""

from dataclasses import replace

import torch

from model.backbone import build_backbone, has_own_weights, require_own_file
from model.config import ModelConfig, reads_pretrained
from model.head import head_of
from model.lseg import LSeg, build_lseg
from model.partners import require_partner
from model.text import (
    SENTENCE_PREFIX,
    WEIGHT_SUFFIXES,
    build_text_encoder,
    require_equal_counts,
    require_text_weights,
    tower_outline,
)
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.questions.words import asked_texts
from pipeline.training.state.optimizer import freeze_text


def check_model(config: ModelConfig) -> LSeg:
    """Builds the network on the meta device: without its memory and without weights.

    Published weights are looked for where they are used, on the workers: this machine may have no
    way to them. A file or a package that the settings name must be here too, and is loaded once to
    see that it is this backbone's: on the workers that costs a minute and a traceback.

    Raises:
        ModelError: The backbone or the text encoder does not exist, or settings do not fit.
        UserError: There are no weights where LSEG_WEIGHTS says, and the encoder needs them here.
    """
    wanted = head_of(config).wanted(config)
    if wanted is not None:
        require_partner(config)
    require_own_file(config.backbone)
    if has_own_weights(config.backbone):
        build_backbone(config.backbone, wanted)
    backbone = replace(config.backbone, pretrained=False, weights="")
    if config.text.encoder.startswith(SENTENCE_PREFIX):  # Whose width only its weights tell.
        use_prefetched()
    if reads_pretrained(config.text.encoder) and config.text.pretrained.endswith(WEIGHT_SUFFIXES):
        require_text_weights(config.text)
    dim = build_text_encoder(config.text).dim
    with torch.device("meta"):
        return build_lseg(replace(config, backbone=backbone), dim)


def check_training(config: TrainMixConfig) -> LSeg:
    """Builds the network as `check_model` does, with the text tower where that is trained.

    Raises:
        ModelError: `check_model` refuses the network, or the tower cannot be built.
        UserError: There are no weights where LSEG_WEIGHTS says, and the encoder needs them here.
    """
    lseg = check_model(config.model)
    if config.train.text != "frozen":
        lseg.text_tower = tower_outline(config.model.text)
    return lseg


def check_trained_text(config: TrainMixConfig, labels: LabelSpace) -> None:
    """Refuses what a text tower that is to be trained cannot be asked.

    Raises:
        ModelError: The labels have different numbers of names.
        UserError: The tower has no attention of the usual form.
    """
    if config.train.text != "frozen":
        text = config.model.text
        freeze_text(tower_outline(text), text.encoder)
        require_equal_counts(text, asked_texts(config.train, labels))
