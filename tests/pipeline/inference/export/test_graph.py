"""Convolutions of TensorFlow's padding, in an exported graph."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from pipeline.inference.export.graph import fixed_padding


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
