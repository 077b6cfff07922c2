"""The network as one graph: images as they are and text vectors in, logits out.

The graph pads, normalises and crops itself, so that what runs it needs no knowledge of the network;
its sizes are free. The label vectors are an input: words change without another export.

Shapes: B images, H W pixels, K labels, C embedding, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from model.lseg import LSeg

IMAGE, TEXT, LOGITS = "image", "text", "logits"
"""Names of the inputs and of the output."""


class SegmentGraph(nn.Module):
    """A network with fixed weights whose inputs are plain arrays."""

    def __init__(self, lseg: LSeg) -> None:
        super().__init__()
        self.lseg = lseg.eval().requires_grad_(False)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores pixels against labels.

        Args:
            image: (B, H, W, 3) uint8 RGB.
            text: (K, C) float32, of any length; where P templates are channels (K, P * C), P
                vectors of length 1.

        Returns:
            (B, K, ceil(H / 2), ceil(W / 2)) float32 logits.
        """
        stride = self.lseg.stride_px
        height, width = image.shape[1], image.shape[2]
        # As the network pads, but without a question about the size, which would fix it.
        rows = torch.arange((height + stride - 1) // stride * stride).clamp_max(height - 1)
        columns = torch.arange((width + stride - 1) // stride * stride).clamp_max(width - 1)
        padded = image.index_select(1, rows).index_select(2, columns)
        trunk = self.lseg.trunk(self.lseg.normalize(padded))
        # What was padded is cut off before the regulariser, which would mix it into the border.
        trunk = trunk._replace(cropped=((height + 1) // 2, (width + 1) // 2))
        return self.lseg.score_trunk(trunk, text)


def segment_program(lseg: LSeg) -> ExportedProgram:
    """Exports the graph of a network, with free B, H, W and K."""
    # Sizes that are multiples neither of the stride nor of a window of the cost head, and differ:
    # PyTorch takes equal ones for one.
    height, width = 27 * lseg.stride_px - 2, 41 * lseg.stride_px - 6
    image = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    text = functional.normalize(torch.ones(5, lseg.text_width), dim=1)
    free = Dim.DYNAMIC
    sizes = {IMAGE: {0: free, 1: free, 2: free}, TEXT: {0: free}}
    with fixed_padding(lseg):
        return exported(SegmentGraph(lseg), (image, text), sizes)


@contextmanager
def fixed_padding(network: nn.Module) -> Iterator[None]:
    """Pads TensorFlow's convolutions by what their own numbers say, for a while.

    Their padding depends on the size of the map, and by tens of layers the terms of a size that is
    free grow beyond what PyTorch can simplify. In this network each map has a multiple of the
    convolution's stride, for which the padding is always the same.
    """
    found: list[Any] = [m for m in network.modules() if isinstance(m, Conv2dSame)]
    for module in found:
        module.forward = partial(_conv_of_multiples, module)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _conv_of_multiples(conv: nn.Conv2d, map_BChw: Tensor) -> Tensor:
    """What the convolution makes of a map whose height and width are multiples of its stride."""
    missing = [
        max(0, dilation * (kernel - 1) + 1 - stride)
        for kernel, stride, dilation in zip(
            conv.kernel_size, conv.stride, conv.dilation, strict=True
        )
    ]
    down, right = missing
    sides = (right // 2, right - right // 2, down // 2, down - down // 2)
    padded = functional.pad(map_BChw, sides)
    return functional.conv2d(
        padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups
    )


def exported(graph: nn.Module, example: tuple[Tensor, ...], free: Any) -> ExportedProgram:
    """Exports a graph with the sizes that are `free`, by the names of its inputs."""
    # Nothing in it has a gradient; without gradients the cost head would go piece by piece, and the
    # number of pieces depends on the sizes.
    with torch.enable_grad():
        program = torch.export.export(
            graph,
            example,
            dynamic_shapes=free,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    # What PyTorch notes of the example's own sizes (that two of them differ, say) would refuse
    # others; whether those are right is compared after the export.
    traced = program.graph_module
    for node in [*traced.graph.nodes]:
        if node.target is torch.ops.aten._assert_scalar.default:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return program


def reference_logits(lseg: LSeg, image_HWC: np.ndarray, text_KC: np.ndarray) -> np.ndarray:
    """Logits of the network itself: (K, ceil(H / 2), ceil(W / 2)) float32."""
    with torch.inference_mode():
        batch = lseg.normalize(torch.from_numpy(image_HWC)[None])
        return lseg(batch, torch.from_numpy(text_KC))[0].numpy()
