"""What of a network's settings is published: names that mean the same on any machine, no places.

A place (a folder, a file, an address) leads nowhere on another machine, is not followed there, and
says whose machine it was. Of one that a user of the network has to replace, the kind stays, so that
the error at loading can say what to name.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint import KINDS_OF_PLACES, TEXT_WEIGHTS, is_name, is_tag, reads_pretrained
from model.config import (
    NOT_PUBLISHED,
    ONE_HOT,
    STAND_IN,
    BackboneConfig,
    ModelConfig,
    TextConfig,
)
from model.packages import PACKAGE
from model.text import SENTENCE_PREFIX
from model.text.open_clip_tower import HUB_MODEL

_PART = r"[\w-][\w.-]{0,95}"
_SENTENCE_MODEL = re.compile(rf"{SENTENCE_PREFIX}({_PART}(?:/{_PART})?)")
_HUB_MODEL = re.compile(rf"{HUB_MODEL}{_PART}/{_PART}(@{_PART})?")


def published_config(config: ModelConfig) -> ModelConfig:
    """Returns the settings without places.

    Args:
        config: the network's; its weights come from the checkpoint's file.
    """
    backbone = replace(
        config.backbone, pretrained=False, weights="", kwargs=_without_places(config.backbone)
    )
    return replace(config, backbone=backbone, text=published_text(config.text))


def published_text(text: TextConfig) -> TextConfig:
    """Returns the text encoder by a name, or by NOT_PUBLISHED after its kind."""
    if not _is_public(text.encoder):
        kind = next((kind for kind in KINDS_OF_PLACES if text.encoder.startswith(kind)), "")
        text = replace(text, encoder=f"{kind}{NOT_PUBLISHED}")
    if text.pretrained in ("", TEXT_WEIGHTS) or is_tag(text.pretrained):
        return text
    # What is not read may as well be the default.
    named = NOT_PUBLISHED if reads_pretrained(text.encoder) else TextConfig().pretrained
    return replace(text, pretrained=named)


def has_own_place(text: TextConfig) -> bool:
    """Whether a published text encoder is one that a user of the network has to name."""
    return NOT_PUBLISHED in text.encoder or text.pretrained == NOT_PUBLISHED


def _is_public(encoder: str) -> bool:
    if encoder in (STAND_IN, ONE_HOT) or encoder.startswith(PACKAGE) or is_name(encoder):
        return True
    if sentence := _SENTENCE_MODEL.fullmatch(encoder):
        return not Path(sentence[1]).is_dir()  # `owner/name` may be a folder as well.
    return bool(_HUB_MODEL.fullmatch(encoder))


def _without_places(backbone: BackboneConfig) -> dict[str, Any]:
    """The arguments of timm without those that say where weights are."""
    return {
        key: _kept(value) for key, value in backbone.kwargs.items() if not _is_place(key, value)
    }


def _kept(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _kept(inner) for key, inner in value.items() if not _is_place(key, inner)}


def _is_place(key: Any, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_place(key, each) for each in value)
    return isinstance(value, str) and (key == "file" or any(sign in value for sign in "/\\~"))
