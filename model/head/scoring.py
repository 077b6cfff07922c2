"""Cosines of pixel and label vectors without ever holding the pixel vectors.

As published a pixel vector is u = up(W f + b): the decoder's features f (F channels, stride 4) are
upsampled to stride 2 and go through the head's 1x1 convolution into C = 512 channels, 118 MB for
one 480x480 image and several times that with gradients. The score of a label t is t.u / |u|.
Upsampling and the head are linear and commute, so

    t.u  =  up(t.W f + t.b)              needs K maps at stride 4, upsampled;
    |u|^2 = sum of w_i w_j <e_i, e_j>    over the four neighbours e of an upsampled pixel,

and the inner products <W f_i + b, W f_j + b> follow from the F channels and the small matrix W'W.

Lengths and scores are taken in float32 whatever the caller's autocast, or wider where the weights
are.

Shapes: B batch, F decoder features, C embedding, K labels, h w stride 4.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model.upsampling import shift, upsample, upsample_squares


def cosine_scores(
    trunk_BFhw: Tensor, weight_CF: Tensor, bias_C: Tensor, text_KC: Tensor, size: tuple[int, int]
) -> Tensor:
    """Cosine of every upsampled pixel vector with every label vector.

    Args:
        trunk_BFhw: (B, F, h, w), any float type; computed in at least float32.
        weight_CF: (C, F), of the head.
        bias_C: (C,)
        text_KC: (K, C) or (B, K, C), rows of any length, which scales the result.
        size: (H, W) to upsample to.

    Returns:
        (B, K, H, W), float32 or wider; a cosine where the rows of text have length 1.
    """
    dtype = at_least_float32(trunk_BFhw)
    with full_precision(trunk_BFhw):
        # The bias as the weight of one more channel, which is 1 everywhere.
        trunk = functional.pad(trunk_BFhw.to(dtype), (0, 0, 0, 0, 0, 1), value=1.0)
        weight = torch.cat([weight_CF, bias_C[:, None]], dim=1).to(dtype)
        flat_BFN = trunk.flatten(2)
        products = (text_KC.to(trunk) @ weight) @ flat_BFN
        products = upsample(products.unflatten(2, trunk.shape[2:]), size)

        paired = ((weight.T @ weight) @ flat_BFN).view_as(trunk)  # <e_i, e_j> = trunk_i . paired_j
        right, below = shift(trunk, 3), shift(paired, 2)
        squared = upsample_squares(
            (trunk * paired).sum(1),
            (right * paired).sum(1),
            (trunk * below).sum(1),
            (right * below).sum(1) + (shift(right, 2) * paired).sum(1),
            size,
        )
        # Rounding may take the length of a vanishing vector below zero.
        return products * squared.clamp_min(1e-12).rsqrt().unsqueeze(1)


def directions(map_BChw: Tensor) -> Tensor:
    """The vectors of a map at length 1, in at least float32."""
    return functional.normalize(map_BChw.to(at_least_float32(map_BChw)), dim=1)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Switches off the caller's autocast: lengths, scores and softmax need float32."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The type of a tensor, or float32 where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
