"""The interface of the network, for code that scores images with it or stores it."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from model.config import ModelConfig
from model.regularizer import Regularizer


class Trunk(NamedTuple):
    """The part of the network's output on an image that does not depend on the labels."""

    features_BFhw: Tensor
    """What the head scores: LSeg's the decoder's features, F channels, at stride 4 of the padded
    input; CAT-Seg's the aligned features."""
    size: tuple[int, int]
    """Half of the padded input, rounded up."""
    cropped: tuple[int, int]
    """Half of the input, rounded up."""
    guidance: tuple[Tensor, ...] = ()
    """What guides the decoder of the cost head."""
    aligned_BChw: Tensor | None = None
    """With `dot-aligned` dense features in the space of the text encoder, one for each patch."""

    def crop(self, map_BChw: Tensor) -> Tensor:
        """Cuts a half-resolution map to the half of the unpadded input."""
        return map_BChw[:, :, : self.cropped[0], : self.cropped[1]]


class Storable(Protocol):
    """What a checkpoint stores of a network."""

    @property
    def config(self) -> ModelConfig:
        """Its settings."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained weights by name."""
        ...


class Network(Protocol):
    """A network that scores images in two parts; `model.lseg.LSeg` is the one of this project."""

    config: ModelConfig
    regularizer: Regularizer
    mean_C: Tensor
    std_C: Tensor

    @property
    def couples_labels(self) -> bool:
        """Whether the score of a label depends on the other labels that are asked."""
        ...

    @property
    def scores_apart(self) -> bool:
        """Whether the score of a label is the logit that this label alone is right."""
        ...

    def trunk(self, image_BCHW: Tensor) -> Trunk:
        """Computes what does not depend on the labels."""
        ...

    def score_trunk(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        """Scores a trunk against labels: (B, K, h, w) logits."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained weights by name."""
        ...
