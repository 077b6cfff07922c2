"""What the label-independent part of the network computes."""

from typing import NamedTuple

from torch import Tensor


class Trunk(NamedTuple):
    """What the network makes of images before it is told any label."""

    features_BFhw: Tensor
    """The decoder's features, F channels, at stride 4 of the padded input."""
    size: tuple[int, int]
    """Half of the padded input, rounded up."""
    cropped: tuple[int, int]
    """Half of the input, rounded up."""

    def crop(self, map_BChw: Tensor) -> Tensor:
        """Cuts a half-resolution map to the half of the unpadded input."""
        return map_BChw[:, :, : self.cropped[0], : self.cropped[1]]
