"""A text tower that is trained along with the network, as CAT-Seg trains CLIP's.

The frozen encoder hands out vectors that were made once; here they are made anew from the tower's
weights, with a gradient. Labels are given as tokens, so that a step can choose among them on its
device.

Shapes: K labels, N texts of a label (its names, each in every template), L tokens, P templates that
are channels, else 1, C embedding.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import TextConfig
from model.errors import ModelError
from model.text.encoders import OpenClipEncoder, build_text_encoder
from model.text.templates import channels_of, texts_of

CHUNK = 256
"""Texts that are encoded at a time where no gradient is wanted."""


class TrainedTower(nn.Module):
    """The text tower of an open_clip model, whose weights are `clip.*` under open_clip's names.

    Args:
        clip: the model without its image tower, which becomes a part of this.
        config: what it is the encoder of.
    """

    def __init__(self, clip: nn.Module, config: TextConfig) -> None:
        super().__init__()
        self.clip = clip
        self._channels = channels_of(config) if config.channels else 0

    def forward(self, tokens_KNL: Tensor) -> Tensor:
        """Encodes labels: (K, P * C), rows of length 1, as `TextEncoder.encode` makes them.

        Args:
            tokens_KNL: (K, N, L) int64, from `tokens_of`, on the tower's device.
        """
        made = cast(Any, self.clip).encode_text(tokens_KNL.flatten(0, 1))
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        vectors_KNC = functional.normalize(made, dim=1).unflatten(0, tokens_KNL.shape[:2])
        if self._channels:
            # The names of a label, each in all templates: the mean over names.
            apart_KPC = vectors_KNC.unflatten(1, (-1, self._channels)).mean(1)
            return functional.normalize(functional.normalize(apart_KPC, dim=2).flatten(1), dim=1)
        return functional.normalize(vectors_KNC.mean(1), dim=1)

    @torch.no_grad()
    def encode(self, tokens_KNL: Tensor) -> Tensor:
        """Encodes any number of labels without a gradient, some at a time."""
        at_once = max(1, CHUNK // tokens_KNL.shape[1])
        return torch.cat([self(chunk) for chunk in tokens_KNL.split(at_once)])


def trained_tower(config: TextConfig) -> TrainedTower:
    """Makes a tower of its own of the weights that a configuration names, to be trained.

    Raises:
        ModelError: the encoder is no text tower of open_clip's.
    """
    return TrainedTower(_tower_of(config).tower, config)


def tower_outline(config: TextConfig) -> TrainedTower:
    """Makes such a tower on the meta device, without weights, for estimates.

    Raises:
        ModelError: the encoder is no text tower of open_clip's, or wants a package that is missing.
    """
    import open_clip

    encoder = _tower_of(config).config.encoder
    try:
        with torch.device("meta"):
            model: Any = open_clip.create_model(encoder, pretrained=None, device="meta")
    except RuntimeError as error:
        raise ModelError(f"text.encoder={encoder}: cannot be built: {error}") from error
    model.visual = None
    return TrainedTower(model, config)


def tokens_of(config: TextConfig, labels: Sequence[str]) -> Tensor:
    """The tokens of labels in their templates: (K, N, L) int64.

    Raises:
        ModelError: the encoder is no text tower of open_clip's, or labels have different numbers of
            names, which one tensor cannot hold.
    """
    encoder = _tower_of(config)
    require_equal_counts(config, labels)
    texts = [text for each in texts_of(labels, config) for text in each]
    tokens: Tensor = encoder.tokenizer(texts)
    return tokens.unflatten(0, (len(labels), -1))


def require_equal_counts(config: TextConfig, labels: Sequence[str]) -> None:
    """Refuses labels that have different numbers of texts, which one tensor cannot hold.

    Raises:
        ModelError: names the numbers.
    """
    counts = {len(each) for each in texts_of(labels, config)}
    if len(counts) > 1:
        raise ModelError(
            f"text.synonyms={config.synonyms}: gives labels {min(counts)} to {max(counts)} texts, "
            "and a text tower that is trained wants one number for all: set it to first"
        )


def _tower_of(config: TextConfig) -> OpenClipEncoder:
    encoder = build_text_encoder(config)
    if not isinstance(encoder, OpenClipEncoder):
        raise ModelError(
            f"text.encoder={config.encoder}: cannot be trained: must be a CLIP model of open_clip's"
        )
    return encoder
