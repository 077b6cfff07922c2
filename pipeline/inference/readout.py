"""What can be read from the views of an image besides its labels: probabilities and vectors."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.lseg import LSeg
from model.prediction import NO_LABEL, probabilities
from model.sliding import SlidingConfig, Views, window_grid


def probability_bands(
    lseg: LSeg,
    image_BCHW: Tensor,
    text_TC: Tensor,
    num_labels: int,
    sliding: SlidingConfig,
    size: tuple[int, int],
    threshold: float | None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Scores images from the top down.

    Args:
        lseg: The network.
        image_BCHW: (B, 3, H, W) float, normalised.
        text_TC: (T, C) vectors of the labels, then of the texts that mean none of them.
        num_labels: How many of them are labels.
        sliding: How the network sees the images.
        size: (H, W) of the results.
        threshold: The least probability of a pixel's best label; None: any.

    Yields:
        The rows of a band, its probabilities (B, K, R, W) float16, with one more row for the texts
        together where there are any, and its label ids (B, R, W) int64, positions or NO_LABEL.
    """
    for rows, band in Views(lseg, image_BCHW, sliding, size).bands(text_TC):
        probability = probabilities(band / sliding.num_views, lseg.scores_apart)
        # By the scores: of two large ones both probabilities are 1.
        best = band.argmax(1)
        best_probability = probability.gather(1, best[:, None])[:, 0]
        best = best.where(best < num_labels, NO_LABEL)
        if threshold is not None:
            best = best.where(best_probability >= threshold, NO_LABEL)
        kept = probability[:, :num_labels]
        if len(text_TC) > num_labels:
            none = probability[:, num_labels:]
            rest = none.amax(1, keepdim=True) if lseg.scores_apart else none.sum(1, keepdim=True)
            kept = torch.cat([kept, rest], dim=1)
        yield rows, kept.half().cpu().numpy(), best.cpu().numpy()


def pixel_vectors(lseg: LSeg, image_1CHW: Tensor, sliding: SlidingConfig) -> np.ndarray:
    """Embeds the whole image at scale 1: (C, h, w) float16 of length 1 over C, at half its size.

    Args:
        lseg: The network.
        image_1CHW: (1, 3, H, W) float, normalised.
        sliding: How large the network sees it.
    """
    grid = window_grid((image_1CHW.shape[2], image_1CHW.shape[3]), 1.0, sliding)
    if image_1CHW.shape[2:] != (grid.height, grid.width):
        image_1CHW = functional.interpolate(
            image_1CHW, (grid.height, grid.width), mode="bilinear", align_corners=True
        )
    return lseg.embed(image_1CHW)[0].half().cpu().numpy()
