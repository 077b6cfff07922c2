"""Colours for classes."""

import colorsys

import numpy as np


def palette(count: int) -> np.ndarray:
    """Distinct colours: (count, 3) float, 0..1.

    Hues advance by the golden ratio, so that neighbours in the list lie far apart; lightness
    alternates, so that pairs which look alike to colour-blind eyes differ in brightness.
    """
    hues = (0.07 + 0.618034 * np.arange(count)) % 1
    lights = (0.45, 0.68, 0.56)
    return np.array([colorsys.hls_to_rgb(h, lights[i % 3], 0.75) for i, h in enumerate(hues)])
