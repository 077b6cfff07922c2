"""LSeg: one vector per pixel, one per label, their product is the score.

Li et al. 2022 (Language-driven Semantic Segmentation). A trained image encoder (backbone, DPT
decoder) embeds pixels at half the input's resolution; a frozen text encoder embeds labels; the
scores are cosines over the constant temperature 0.07, smoothed by the spatial regulariser.

Shapes: B batch, C embedding, K labels, H W input pixels, h w half resolution (rounded up).
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone import LEVEL_STRIDES, TokenBackbone, build_backbone
from model.config import ModelConfig
from model.dpt import Decoder, Reassemble, reassemble_factors, reassemble_widths, resize_to
from model.errors import ModelError
from model.regularizer import Regularizer
from model.scoring import cosine_scores

LOGIT_SCALE = 1 / 0.07
"""A constant, as published: neither trained nor stored."""


class LSeg(nn.Module):
    """The network.

    Attributes:
        config: what it was built from.
        stride_px: inputs are padded to multiples of this.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: ModelConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.backbone = build_backbone(config.backbone, config.activation_checkpointing)
        self.reassemble = nn.ModuleList()
        if isinstance(self.backbone, TokenBackbone):
            factors = reassemble_factors(self.backbone.patch_px)
            widths = config.reassemble or reassemble_widths(self.backbone.width)
            self.reassemble.extend(
                Reassemble(self.backbone.width, channels, factor, self.backbone.has_class_token)
                for channels, factor in zip(widths, factors, strict=True)
            )
            self.stride_px = round(self.backbone.patch_px * max(1.0, 1 / min(factors)))
        else:
            if config.reassemble is not None:
                raise ModelError(
                    f"model.reassemble={list(config.reassemble)}: {config.backbone.name} is a "
                    "CNN, whose maps are used as they are: leave it out"
                )
            widths = self.backbone.widths
            self.stride_px = LEVEL_STRIDES[-1]
        self.decoder = Decoder(widths, config.features, embed_dim)
        self.regularizer = Regularizer(config.regularizer)
        # The recipe gives these, not the weights: they stay out of the state dict.
        self.register_buffer("mean_C", torch.tensor(self.backbone.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(self.backbone.std), persistent=False)

    def normalize(self, image_BHWC: Tensor) -> Tensor:
        """Moves uint8 images to the model's device and normalises them there.

        Args:
            image_BHWC: (B, H, W, 3) uint8 RGB.

        Returns:
            (B, 3, H, W) float32, normalised as the backbone was trained.
        """
        image = image_BHWC.to(self.mean_C.device, non_blocking=True).permute(0, 3, 1, 2).float()
        scale = 1 / (255 * self.std_C)
        shift = self.mean_C / self.std_C
        return (image * scale[:, None, None] - shift[:, None, None]).contiguous()

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Embeds pixels without normalising: (B, C, h, w) at ceil(H / 2), ceil(W / 2)."""
        return self.decoder.head(self.trunk(image_BCHW))

    def trunk(self, image_BCHW: Tensor) -> Tensor:
        """The decoder's features before the embedding: (B, F, ceil(H / 2), ceil(W / 2)).

        Args:
            image_BCHW: (B, 3, H, W) float, normalised; any H and W: the right and lower border
                is repeated up to a multiple of `stride_px`, and cut off again.
        """
        height, width = image_BCHW.shape[2:]
        pad_right, pad_down = -width % self.stride_px, -height % self.stride_px
        if pad_right or pad_down:
            image_BCHW = functional.pad(image_BCHW, (0, pad_right, 0, pad_down), mode="replicate")
        levels: list[Any] = self.backbone(image_BCHW)
        if self.reassemble:
            levels = [block(level) for block, level in zip(self.reassemble, levels, strict=True)]
        trunk = resize_to(
            self.decoder.trunk(levels),
            math.ceil((height + pad_down) / 2),
            math.ceil((width + pad_right) / 2),
        )
        return trunk[:, :, : math.ceil(height / 2), : math.ceil(width / 2)]

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Embeds pixels.

        Args:
            image_BCHW: (B, 3, H, W) float, normalised; any H and W.

        Returns:
            pixels_BChw: (B, C, ceil(H / 2), ceil(W / 2)) float32, of length 1 over C.
        """
        embedded = self.features(image_BCHW)
        with torch.autocast(embedded.device.type, enabled=False):
            return functional.normalize(embedded.float(), dim=1)

    def score(self, pixels_BChw: Tensor, text_KC: Tensor) -> Tensor:
        """Scores pixels against labels, before the regulariser.

        Args:
            pixels_BChw: from `embed`.
            text_KC: (K, C), or (B, K, C) where every image has labels of its own; any length.

        Returns:
            (B, K, h, w) float32
        """
        with torch.autocast(pixels_BChw.device.type, enabled=False):
            text = functional.normalize(text_KC.to(pixels_BChw).float(), dim=-1) * LOGIT_SCALE
            flat = torch.matmul(text, pixels_BChw.flatten(2))  # (B, K, h * w)
            return flat.unflatten(2, pixels_BChw.shape[2:])

    def forward(self, image_BCHW: Tensor, text_KC: Tensor) -> Tensor:
        """Scores every pixel of images against labels.

        Args:
            image_BCHW: (B, 3, H, W) float, normalised; any H and W.
            text_KC: (K, C), or (B, K, C) where every image has labels of its own.

        Returns:
            logits_BKhw: (B, K, ceil(H / 2), ceil(W / 2)) float32
        """
        trunk, head = self.trunk(image_BCHW), self.decoder.head
        with torch.autocast(trunk.device.type, enabled=False):
            text = functional.normalize(text_KC.to(trunk.device).float(), dim=-1) * LOGIT_SCALE
            assert head.bias is not None
            logits = cosine_scores(trunk, head.weight.flatten(1), head.bias, text)
            return self.regularizer(logits)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups the parameters for the optimiser as published.

        Args:
            lr: the base learning rate.

        Returns:
            `backbone` (with the reassemble blocks) at `lr`; `decoder` at ten times that;
            `regularizer`, where there is one, at `lr` from the identity and at ten times that
            from the reference initialisation.
        """

        def group(name: str, rate: float, *modules: nn.Module) -> dict[str, Any]:
            params: Iterable[nn.Parameter] = [p for m in modules for p in m.parameters()]
            return {"name": name, "lr": rate, "params": params}

        groups = [
            group("backbone", lr, self.backbone, self.reassemble),
            group("decoder", 10 * lr, self.decoder),
        ]
        if self.regularizer.depth:
            factor = 1 if self.config.regularizer.init == "identity" else 10
            groups.append(group("regularizer", factor * lr, self.regularizer))
        return groups

    @torch.no_grad()
    def label_spread_gain(self, image_BCHW: Tensor, text_KC: Tensor) -> float:
        """Measures on images what the regulariser leaves of the differences between labels.

        Healthy is about 0.1 to 1; see `Regularizer.gain_warning`. One host synchronisation.
        """
        training = self.training
        self.eval()  # BatchNorm's running statistics stay as they are
        gain = self.regularizer.label_spread_gain(self.score(self.embed(image_BCHW), text_KC))
        self.train(training)
        return float(gain)


def build_lseg(config: ModelConfig, embed_dim: int) -> LSeg:
    """Builds the network.

    Args:
        config: its settings.
        embed_dim: length of the text vectors (`TextEncoder.dim`).

    Raises:
        ModelError: settings that do not fit together, or weights that cannot be had.
    """
    return cast(LSeg, LSeg(config, embed_dim))
