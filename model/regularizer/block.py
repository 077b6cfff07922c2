"""The spatial regularisation blocks of LSeg (Li et al. 2022, section 3.3), and their health.

One 3x3 convolution (1 -> 1 channel) smooths the score map of every label alike, several times,
with an activation between; `bottleneck` adds the maximum over the labels of the block's input.

The published initialisation is a lottery at depth 4: a negative bias drives every score negative,
each (leaky) activation multiplies the differences between labels by up to 0.01, and neither the
block nor the encoder receives a gradient. `label_spread_gain` measures that, `gain_warning` names
it. The default initialisation is the identity.

Shapes: B batch, K labels, h w feature map.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import RegularizerConfig

DEAD_GAIN = 1e-2
"""Below this label-spread gain the block passes too little to train."""

# The slope of `leaky_relu` is 0.01 where nothing else is said.
_ACTIVATIONS = {"relu": functional.relu, "lrelu": functional.leaky_relu, "tanh": torch.tanh}


class Regularizer(nn.Module):
    """Applies a block `config.depth` times; the identity where there is none."""

    def __init__(self, config: RegularizerConfig) -> None:
        super().__init__()
        self.config = config
        self.depth = config.applications
        num_convs = min(1, self.depth) if config.shared else self.depth
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(num_convs))
        for conv in self.convs:
            _initialise(cast(nn.Conv2d, conv), config.init)

    @property
    def couples_labels(self) -> bool:
        """Whether the score of a label depends on the other labels: by their maximum."""
        return self.depth > 0 and self.config.kind == "bottleneck"

    def forward(self, logits_BKhw: Tensor) -> Tensor:
        """Regularises the score maps (B, K, h, w); any number of labels."""
        for application in range(self.depth):
            conv = cast(nn.Conv2d, self.convs[application % len(self.convs)])
            out = _smooth(logits_BKhw, conv.weight, cast(Tensor, conv.bias))
            if self.config.kind == "bottleneck":
                out = out + logits_BKhw.amax(dim=1, keepdim=True)
            last = application == self.depth - 1
            logits_BKhw = out if last else _ACTIVATIONS[self.config.activation](out)
        return logits_BKhw

    @torch.no_grad()
    def label_spread_gain(self, logits_BKhw: Tensor) -> Tensor:
        """Measures what the block leaves of the differences between labels in scores before it.

        Gives a 0-d float: std over the labels after the block over the std before, both as the
        root mean square over pixels; 1 without a block, and where there are no differences (one
        label alone); NaN where the scores are not finite.
        """
        before = logits_BKhw.float().var(dim=1, correction=0).mean()
        after = self(logits_BKhw).float().var(dim=1, correction=0).mean()
        gain = (after / before.clamp_min(1e-30)).sqrt()
        return gain.where(before != 0, 1.0)

    @torch.no_grad()
    def lowest_bias(self) -> float:
        """The lowest bias of the block's kernels, NaN without a block. One host synchronisation."""
        biases = [cast(Tensor, conv.bias).min() for conv in self.convs]
        return float(torch.stack(biases).min()) if biases else float("nan")

    def gain_warning(self, gain: float) -> str | None:
        """Says what is wrong when a measured gain is dead, and what to do; None when healthy."""
        if not self.depth or gain >= DEAD_GAIN:
            return None
        if gain != gain:
            return (
                "regularizer: its scores are not finite: lower the learning rate, or use init "
                "'identity'"
            )
        biases = [round(float(cast(Tensor, conv.bias).detach()), 4) for conv in self.convs]
        if min(biases) < 0 and self.config.activation != "tanh":
            cause = (
                f"its bias is negative ({biases}), so the scores of all labels fall below zero "
                f"and {self.config.activation} flattens them"
            )
        elif self.config.activation == "tanh":
            cause = "its inputs saturate tanh"
        else:
            cause = f"its kernel has overshot (bias {biases})"
        return (
            f"regularizer: dead: it leaves {gain:.1e} of the differences between labels; {cause}; "
            "neither it nor the encoder gets a useful gradient: use init 'identity', or a depth "
            "of at most 2, or another seed"
        )


@torch.no_grad()
def _initialise(conv: nn.Conv2d, init: str) -> None:
    """Gives a freshly drawn convolution its first weights; see `RegularizerConfig.init`."""
    bias = cast(Tensor, conv.bias)
    if init == "identity":
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(bias)
    elif init != "reference":
        bias.copy_(bias.abs() if init == "reference-positive" else -bias.abs())


def _smooth(logits_BKhw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves the map of every label with one kernel, of shape (1, 1, 3, 3).

    As a depthwise convolution over the labels: folding them into the batch gives the same numbers,
    but on CPUs takes some thirty times as long, and sums the kernel's gradient less exactly. An
    exported graph does it all the same: ONNX fixes the number of groups, and with it of labels.
    """
    num_labels = logits_BKhw.shape[1]
    if torch.compiler.is_exporting():
        folded = functional.conv2d(logits_BKhw.flatten(0, 1)[:, None], weight, bias, padding=1)
        return folded[:, 0].unflatten(0, (-1, num_labels))
    return functional.conv2d(
        logits_BKhw,
        weight.expand(num_labels, -1, -1, -1),
        bias.expand(num_labels),
        padding=1,
        groups=num_labels,
    )
