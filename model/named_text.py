"""Which text encoder a checkpoint may name, and how its user names another.

A checkpoint names its text encoder, and libraries follow such a name to folders and to the hub, and
import code from there where a file beside the weights asks for it. So a checkpoint may name only
what cannot lead anywhere else: the stand-in, or a model of open_clip's own list with a tag of that
list or with the weights that lie in the checkpoint's folder. Every other place is taken from the
user alone.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from model.config import STAND_IN, TextConfig
from model.errors import ModelError
from model.settings_file import shown

TEXT_WEIGHTS = "text_encoder.safetensors"
"""The file of a text tower that was imported with a network."""

ENCODER = "LSEG_TEXT_ENCODER"
"""Variable with the `text.encoder` to use for checkpoints that name one which is not followed."""
PRETRAINED = "LSEG_TEXT_PRETRAINED"
"""The same for `text.pretrained`."""

# No "/" and no ":": neither a path, nor an address, nor `hf-hub:NAME`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def text_variables() -> dict[str, str]:
    """The variables that are set, for the workers of a job on other machines."""
    return {name: os.environ[name] for name in (ENCODER, PRETRAINED) if os.environ.get(name)}


def followed(named: TextConfig, folder: Path, own: TextConfig | None = None) -> TextConfig:
    """Returns the text encoder to use for a checkpoint.

    Args:
        named: what its config.yaml names.
        folder: where it lies.
        own: what the caller uses in place of one that is not followed; None: what the variables
            name.

    Raises:
        ModelError: the checkpoint names a place, and the caller names none.
    """
    encoder = own.encoder if own else os.environ.get(ENCODER, "")
    pretrained = own.pretrained if own else os.environ.get(PRETRAINED, "")
    if not (named.encoder == STAND_IN or _NAME.fullmatch(named.encoder)):
        if not encoder:
            raise _refused(folder, "encoder", named.encoder, ENCODER)
        named = replace(named, encoder=encoder, pretrained=pretrained or named.pretrained)
        # What the caller named is followed wherever it leads, but the weights only if they are too.
        if encoder.startswith("sentence-transformers/"):
            return named
    if named.encoder == STAND_IN or (pretrained and named.pretrained == pretrained):
        return named
    if named.pretrained == TEXT_WEIGHTS:
        beside = folder / TEXT_WEIGHTS
        if not beside.is_file():
            raise ModelError(
                f"{beside}: no such file: config.yaml names it as the weights of the text encoder: "
                "fetch the checkpoint again"
            )
        return replace(named, pretrained=str(beside))
    if _NAME.fullmatch(named.pretrained) and not named.pretrained.endswith(_SUFFIXES):
        return named
    if not pretrained:
        raise _refused(folder, "pretrained", named.pretrained, PRETRAINED)
    return replace(named, pretrained=pretrained)


def _refused(folder: Path, key: str, value: str, variable: str) -> ModelError:
    return ModelError(
        f"{folder / 'config.yaml'}: model.text.{key}={shown(value)}: is not followed, since it may "
        f"run code: a checkpoint may name {STAND_IN} or an encoder and a tag of open_clip's own "
        f"list: if you trust one, name it yourself: {variable}={shown(value)[1:-1]}"
    )
