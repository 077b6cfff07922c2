"""Parts of the network whose work depends on the size of a map, in an exported graph."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from model.head.aggregator import GUIDANCE_INNER, Aggregator, ImageMaps
from pipeline.inference.export.graph import exported, fixed_padding

EMBED = 16


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (3, 2), (2, 1)])
def test_maps_of_multiples_of_the_stride_are_padded_as_by_their_size(stride, kernel, dilation):
    conv = Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation)
    network = nn.Sequential(conv)
    maps = torch.randn(2, 2, 12 * stride, 7 * stride)
    with torch.no_grad():
        wanted = conv(maps)
        with fixed_padding(network):
            torch.testing.assert_close(network(maps), wanted, rtol=0, atol=0)
        odd = torch.randn(1, 2, 7, 9)  # Afterwards any size is right again.
        assert conv(odd).shape[2:] == ((7 + stride - 1) // stride, (9 + stride - 1) // stride)


class Guided(nn.Module):
    """An aggregator whose guidance follows from the dense features."""

    def __init__(self, head: Aggregator) -> None:
        super().__init__()
        self.head = head

    def forward(self, dense: Tensor, text: Tensor) -> Tensor:
        guidance = tuple(
            functional.interpolate(dense, scale_factor=factor).repeat(1, channels // EMBED, 1, 1)
            for channels, factor in zip(GUIDANCE_INNER, (2.0, 4.0), strict=True)
        )
        return self.head(ImageMaps(dense, guidance), text)


@pytest.mark.parametrize("padded", [0, 4])
def test_one_graph_aggregates_costs_at_every_size_and_for_any_classes(padded):
    torch.manual_seed(0)
    head = Aggregator(EMBED, 2, padded=padded).eval().requires_grad_(False)
    for name, parameter in head.named_parameters():
        if "padding" in name:  # Zero at the start, which would hide what they do.
            nn.init.normal_(parameter)
    guided = Guided(head)
    example = (torch.randn(2, EMBED, 27, 41), torch.randn(1, 5, 2, EMBED))
    free = Dim.DYNAMIC
    sizes = {"dense": {0: free, 2: free, 3: free}, "text": {1: free}}
    graph = exported(guided, example, sizes).module()
    # Whole windows, parts of some, the size of the published mask; fewer classes than go on, more.
    for size, num_classes in [((12, 36), 2), ((24, 24), 4), ((7, 25), 6)]:
        dense = torch.randn(1, EMBED, *size)
        # Of length 1, as labels are: in a graph those that are not left out get that length too.
        text = functional.normalize(torch.randn(1, num_classes, 2, EMBED), dim=-1)
        torch.testing.assert_close(graph(dense, text), guided(dense, text), rtol=1e-4, atol=1e-4)
