"""The dot heads: a decoder gives every pixel a vector, and scores are cosines with the labels'.

`DotHead` is LSeg's (Li et al. 2022): four levels of any backbone, reassembled to maps where they
are a ViT's tokens, a decoder, cosines over the constant temperature 0.07. `AlignedDotHead` adds the
cosines of features that lie in the text's space already, before the decoder has learnt anything.

Shapes: B batch, C embedding, K labels, F decoder features, h w half resolution.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from model.backbone import (
    LEVEL_STRIDES,
    AlignedFeatures,
    AlignedVit,
    AlignedWanted,
    Backbone,
    PyramidBackbone,
    TokenBackbone,
    TokenLevel,
    hooks_of,
)
from model.config import ModelConfig
from model.errors import ModelError
from model.head.dpt import Decoder, Reassemble, reassemble_factors, reassemble_widths
from model.head.interface import Head
from model.head.scoring import at_least_float32, cosine_scores, directions, full_precision
from model.network import Trunk
from model.upsampling import upsample

LOGIT_SCALE = 1 / 0.07
"""A constant, as published: neither trained nor stored."""


class DotHead(Head):
    """As published."""

    def __init__(self, config: ModelConfig, backbone: Backbone, embed_dim: int) -> None:
        self.reassemble = nn.ModuleList()
        if isinstance(backbone, PyramidBackbone):
            if config.reassemble is not None:
                raise ModelError(
                    f"model.reassemble={list(config.reassemble)}: {config.backbone.name} is a "
                    "CNN, whose maps are used as they are: leave it out"
                )
            widths = backbone.widths
            self.stride_px = LEVEL_STRIDES[-1]
        else:
            widths = self._build_reassemble(config, backbone)
        self.decoder = Decoder(widths, config.features, embed_dim)
        self.backbone_rate = {"reassemble": self.reassemble}
        self.head_rate = {"decoder": self.decoder}

    def _build_reassemble(
        self, config: ModelConfig, vit: TokenBackbone | AlignedVit
    ) -> tuple[int, ...]:
        """What makes maps of a ViT's tokens; the channels of the four, finest first."""
        factors = reassemble_factors(vit.patch_px)
        widths = config.reassemble or reassemble_widths(vit.width)
        self.reassemble.extend(
            Reassemble(vit.width, channels, factor, vit.has_class_token)
            for channels, factor in zip(widths, factors, strict=True)
        )
        self.stride_px = round(vit.patch_px * max(1.0, 1 / min(factors)))
        return widths

    def trunk(self, features: Any, size: tuple[int, int], cropped: tuple[int, int]) -> Trunk:
        """The decoder's features of four levels, which are maps or a ViT's tokens."""
        return Trunk(self._decoded(features), size, cropped)

    def _decoded(self, levels: Sequence[Tensor] | Sequence[TokenLevel]) -> Tensor:
        if self.reassemble:
            levels = [block(level) for block, level in zip(self.reassemble, levels, strict=True)]
        return self.decoder(cast(list[Tensor], levels))

    def score(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        """Cosines over the temperature, without ever holding the vectors of the pixels."""
        with full_precision(trunk.features_BFhw):
            return trunk.crop(self._cosines(trunk, self._scaled(text_KC, trunk)))

    @staticmethod
    def _scaled(text_KC: Tensor, trunk: Trunk) -> Tensor:
        """The labels' vectors at the length of the logit scale."""
        features = trunk.features_BFhw
        text_KC = text_KC.to(features.device, at_least_float32(features))
        return functional.normalize(text_KC, dim=-1) * LOGIT_SCALE

    def _cosines(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        head = self.decoder.head
        return cosine_scores(
            trunk.features_BFhw,
            head.weight.flatten(1),
            cast(Tensor, head.bias),
            text_KC,
            trunk.size,
        )

    def embed(self, trunk: Trunk) -> Tensor:
        """The decoder's vectors."""
        vectors = self._vectors(trunk)
        with full_precision(vectors):
            return functional.normalize(trunk.crop(vectors), dim=1)

    def _vectors(self, trunk: Trunk) -> Tensor:
        vectors = self.decoder.head(trunk.features_BFhw)
        return upsample(vectors.to(at_least_float32(vectors)), trunk.size)


class AlignedDotHead(DotHead):
    """The same, plus the cosines of the backbone's own features."""

    @staticmethod
    def wanted(config: ModelConfig) -> AlignedWanted:
        """Aligned features, and the four levels for the decoder."""
        return AlignedWanted(config.head.aligned, lambda depth: hooks_of(config.backbone, depth))

    def trunk(self, features: Any, size: tuple[int, int], cropped: tuple[int, int]) -> Trunk:
        """The decoder's features, and the aligned ones as they are."""
        found: AlignedFeatures = features
        aligned = found.dense_BEhw
        return Trunk(self._decoded(found.levels), size, cropped, aligned_BChw=aligned)

    def _cosines(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        aligned = directions(_aligned(trunk))
        cosines = (text_KC @ aligned.flatten(2)).unflatten(2, aligned.shape[2:])
        return super()._cosines(trunk, text_KC) + upsample(cosines, trunk.size)

    def embed(self, trunk: Trunk) -> Tensor:
        """The directions of the sums of the decoder's vectors and the backbone's."""
        vectors = self._vectors(trunk)
        with full_precision(vectors):
            vectors = functional.normalize(vectors, dim=1)
            vectors = vectors + upsample(directions(_aligned(trunk)), trunk.size)
            return functional.normalize(trunk.crop(vectors), dim=1)


def _aligned(trunk: Trunk) -> Tensor:
    assert trunk.aligned_BChw is not None
    return trunk.aligned_BChw
