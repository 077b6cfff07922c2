"""The published ADE20K evaluation once more, written down plainly and slowly, to check ours.

Shares nothing with model/sliding.py. `net` maps a normalised picture (1, 3, window, window) to
logits of its own size; every window, and every mirror image, goes through it alone.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def summed_logits(
    net: Callable[[Tensor], Tensor],
    picture: Tensor,
    black: Tensor,
    num_labels: int,
    *,
    scales: tuple[float, ...],
    base: int,
    window: int,
    flip: bool = True,
) -> Tensor:
    """(1, K, H, W) for a picture (1, 3, H, W); `black` is -mean/std, (3,)."""

    def pad(x: Tensor) -> Tensor:
        high, wide = max(window, x.shape[2]), max(window, x.shape[3])
        out = torch.zeros(1, 3, high, wide)
        for channel in range(3):
            out[0, channel] = black[channel]
        out[:, :, : x.shape[2], : x.shape[3]] = x
        return out

    def inference(x: Tensor) -> Tensor:
        assert x.shape == (1, 3, window, window)
        out = net(x)
        assert out.shape == (1, num_labels, window, window)
        if flip:
            out = out + torch.flip(net(torch.flip(x, (3,))), (3,))
        return out

    def resize(x: Tensor, high: int, wide: int) -> Tensor:
        return functional.interpolate(x, (high, wide), mode="bilinear", align_corners=True)

    height, width = picture.shape[2:]
    stride = int(window * (2.0 / 3.0))
    scores = torch.zeros(1, num_labels, height, width)
    for scale in scales:
        long = math.ceil(base * scale)
        if height > width:
            high, wide = long, int(1.0 * width * long / height + 0.5)
        else:
            high, wide = int(1.0 * height * long / width + 0.5), long
        short = min(high, wide)
        x = resize(picture, high, wide)
        if long <= window:
            out = inference(pad(x))[:, :, :high, :wide]
        else:
            if short < window:
                x = pad(x)
            full_high, full_wide = x.shape[2:]
            out = torch.zeros(1, num_labels, full_high, full_wide)
            count = torch.zeros(1, 1, full_high, full_wide)
            for row in range(math.ceil((full_high - window) / stride) + 1):
                for column in range(math.ceil((full_wide - window) / stride) + 1):
                    top, left = row * stride, column * stride
                    bottom, right = min(top + window, full_high), min(left + window, full_wide)
                    part = inference(pad(x[:, :, top:bottom, left:right]))
                    out[:, :, top:bottom, left:right] += part[:, :, : bottom - top, : right - left]
                    count[:, :, top:bottom, left:right] += 1
            assert count.min() >= 1
            out = (out / count)[:, :, :high, :wide]
        scores += resize(out, height, width)
    return scores
