"""What a head is to the network: the one way into this room.

A head says which features it wants of a backbone, computes of them what does not depend on the
labels (a `Trunk`, once for each image), and scores that against the vectors of any labels. What it
makes of labels (whether they compete, whether they depend on each other) is asked of it, so that
no caller knows the kinds.

A head is no module itself. Its modules lie in the network under the names that checkpoints have
had for them since there was one head only.

Shapes: B batch, C embedding, K labels, h w half resolution.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from model.backbone import AlignedWanted
from model.config import ModelConfig
from model.network import Trunk


class Head(ABC):
    """From the features of images and the vectors of labels to scores.

    A subclass is built of the network's settings, a backbone that gives what it `wanted`, and the
    length of a label's vector.
    """

    couples_labels: ClassVar[bool] = False
    """Whether the score of a label depends on the other labels that are asked."""
    scores_apart: ClassVar[bool] = False
    """Whether the score of a label is the logit that this label alone is right."""

    stride_px: int
    """Images are padded to multiples of this."""
    backbone_rate: Mapping[str, nn.Module]
    """Modules that train at the backbone's rate, by their names in the network."""
    head_rate: Mapping[str, nn.Module]
    """Modules that train at the rate of what starts untrained."""

    @staticmethod
    def wanted(config: ModelConfig) -> AlignedWanted | None:
        """Which features of the backbone it scores; None: four levels."""
        return None

    @abstractmethod
    def __init__(self, config: ModelConfig, backbone: Any, embed_dim: int) -> None: ...

    @abstractmethod
    def trunk(self, features: Any, size: tuple[int, int], cropped: tuple[int, int]) -> Trunk:
        """Computes what does not depend on the labels.

        Args:
            features: what the backbone gives.
            size: half of the padded image, rounded up.
            cropped: half of the image, rounded up.
        """

    @abstractmethod
    def score(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        """Scores a trunk against labels.

        Args:
            trunk: of B images.
            text_KC: (K, C), or (B, K, C) where every image has labels of its own; any length.

        Returns:
            (B, K, h, w) float32 or wider, of the size `cropped`.
        """

    @abstractmethod
    def embed(self, trunk: Trunk) -> Tensor:
        """The vectors of the pixels of a trunk: (B, C, h, w), of length 1 over C."""
