"""Crops of arrays, as the ingest cuts them from stored samples."""

import numpy as np

from pipeline.data.ingest.augment import AugmentConfig, cut_window, draw_window
from pipeline.data.pixels.decode import shrink_image
from pipeline.data.taxonomy import IGNORE


def random_crop(
    image: np.ndarray, label: np.ndarray, seed: int, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The crop of one row of the stream.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8.
        seed: 64-bit seed of the row.
        config: Sizes and probabilities.

    Returns:
        image: (crop_px, crop_px, 3) uint8 RGB, padded with 0.
        label: (crop_px, crop_px) uint8, padded with IGNORE.
    """
    window = draw_window(label.shape[0], label.shape[1], seed, config)
    crop = np.zeros((config.crop_px, config.crop_px, 3), np.uint8)
    ids = np.full((config.crop_px, config.crop_px), IGNORE, np.uint8)
    cut_window(shrink_image(image, window.shrink), label, window, crop, ids)
    return crop, ids
