"""Cosines of pixel and label vectors without ever holding the pixel vectors.

The pixel vector is the decoder's last 1x1 convolution, e = W f + b with C = 512 channels at half
resolution: 118 MB for one 480x480 picture, several times that with gradients. Only two things of
it enter the score: its product with each label, t.e = (W't).f + t.b, and its length,
|e|^2 = f'(W'W)f + 2 (W'b).f + b.b. Both need the F channels before the convolution only.

Shapes: B batch, F decoder features, C embedding, K labels, h w half resolution, N = h * w.
"""

import torch
from torch import Tensor


def cosine_scores(trunk_BFhw: Tensor, weight_CF: Tensor, bias_C: Tensor, text_KC: Tensor) -> Tensor:
    """Cosine of every pixel vector `weight @ trunk + bias` with every label vector.

    Args:
        trunk_BFhw: (B, F, h, w), any float type; computed in at least float32.
        weight_CF: (C, F), of the 1x1 convolution.
        bias_C: (C,)
        text_KC: (K, C) or (B, K, C), rows of any length, which scales the result.

    Returns:
        (B, K, h, w), float32 or wider; a cosine where the rows of text have length 1.
    """
    dtype = torch.promote_types(trunk_BFhw.dtype, torch.float32)
    with torch.autocast(trunk_BFhw.device.type, enabled=False):
        trunk_BFN = trunk_BFhw.flatten(2).to(dtype)
        weight_CF, bias_C = weight_CF.to(dtype), bias_C.to(dtype)
        text_KC = text_KC.to(trunk_BFN)
        products = (text_KC @ weight_CF) @ trunk_BFN + (text_KC @ bias_C).unsqueeze(-1)
        gram_FF = weight_CF.T @ weight_CF
        linear_F = 2 * (bias_C @ weight_CF)
        quadratic_BFN = gram_FF @ trunk_BFN + linear_F[:, None]
        squared_BN = (trunk_BFN * quadratic_BFN).sum(1) + bias_C.square().sum()
        # Rounding may take the length of a vanishing vector below zero.
        inverse_BN = squared_BN.clamp_min(1e-12).rsqrt()
        return (products * inverse_BN.unsqueeze(1)).unflatten(2, trunk_BFhw.shape[2:])
