"""Colours for labels: as far apart as they go, or safe for colour-blind eyes with textures.

Distances are in CIELAB. The colour-blind-safe colours are those of Okabe and Ito (2008); beyond
eight labels they come again under a texture, which needs no colour vision at all.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

PaletteName = Literal["distinct", "colour-blind"]

NO_LABEL_COLOUR = (140, 140, 140)
"""Grey, for pixels of no label."""

OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (40, 40, 40),
)

NUM_TEXTURES = 5

KNOWN_COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Cityscapes' own colours of its classes, which people know from other tools and papers."""

_SAME_CLASS = {
    "street": "road",
    "pavement": "sidewalk",
    "sidewalk pavement": "sidewalk",
    "house": "building",
    "traffic sign front": "traffic sign",
    "tree": "vegetation",
    "trees": "vegetation",
    "plant": "vegetation",
    "grass": "terrain",
    "pedestrian": "person",
    "people": "person",
    "human": "person",
    "rider other": "rider",
    "motorbike": "motorcycle",
    "bike": "bicycle",
}
"""Words that a known class has elsewhere."""

_NEAR = 25.0
"""Distance in CIELAB below which another label's colour could be taken for a known one."""

_FIRST = ((31, 119, 206), (240, 128, 30), (44, 160, 60))
"""What the distinct colours start from: blue, orange, green."""


def label_colours(count: int, palette: PaletteName = "distinct") -> np.ndarray:
    """Colours of labels 0, 1, ...: (count, 3) uint8 RGB; the first few do not depend on `count`."""
    if palette == "colour-blind":
        return np.array([OKABE_ITO[i % len(OKABE_ITO)] for i in range(count)], np.uint8)
    return _distinct(count)


def name_colours(names: Sequence[str], palette: PaletteName = "distinct") -> np.ndarray:
    """Colours of labels by their names: (len(names), 3) uint8 RGB.

    Frequent classes have the same well-known colour everywhere, once in a list. The others get the
    distinct ones in turn, without those that could be taken for a known one of the list.
    """
    if palette == "colour-blind":
        return label_colours(len(names), palette)
    known: dict[str, int] = {}
    for position, name in enumerate(names):
        words = " ".join(re.split(r"[\s_\-]+", name.strip().lower()))
        known.setdefault(_SAME_CLASS.get(words, words), position)
    fixed = {position: KNOWN_COLOURS[w] for w, position in known.items() if w in KNOWN_COLOURS}
    others = label_colours(len(names) + 4 * len(fixed))
    if fixed:
        taken = to_lab(np.array([*fixed.values()], np.uint8))
        distance = np.linalg.norm(to_lab(others)[:, None] - taken, axis=2).min(1)
        # Of very many labels too few would be left; then those that are near come last.
        others = np.concatenate([others[distance >= _NEAR], others[distance < _NEAR]])
    rest = iter(others)
    colours = [fixed.get(position) or next(rest) for position in range(len(names))]
    return np.array(colours, np.uint8).reshape(len(names), 3)


def label_textures(count: int, palette: PaletteName = "distinct") -> np.ndarray:
    """Textures of labels: (count,) int64, 0 for none, see `texture_mask`."""
    if palette == "colour-blind":
        return (np.arange(count) // len(OKABE_ITO)) % NUM_TEXTURES
    return np.zeros(count, np.int64)


def texture_mask(texture: int, shape: tuple[int, int], period_px: int) -> np.ndarray:
    """Where a texture is drawn: (H, W) bool. 1 and 2: diagonals; 3: lines; 4: dots; 0: nowhere."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    line = max(1, period_px // 4)
    if texture == 1:
        return (x + y) % period_px < line
    if texture == 2:
        return (x - y) % period_px < line
    if texture == 3:
        return np.broadcast_to(y % period_px < line, shape)
    if texture == 4:
        half = period_px // 2
        centred = ((x % period_px) - half) ** 2 + ((y % period_px) - half) ** 2
        return centred <= (period_px / 3.5) ** 2
    return np.zeros(shape, bool)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB of colours (N, 3) uint8 RGB: (N, 3) float32, L 0..100."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


@lru_cache(maxsize=8)
def _distinct(count: int) -> np.ndarray:
    """Each colour is the one of a cube's that lies farthest from all before it, and from grey."""
    steps = np.linspace(0, 255, 12).round()
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).astype(np.uint8)
    lab = to_lab(cube)
    # Neither so dark, so light or so pale that it could be the photo itself, nor neon.
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 35) & (lab[:, 0] < 85) & (chroma > 30) & (chroma < 78)
    cube, lab = cube[usable], lab[usable]
    chosen: list[tuple[int, ...]] = list(_FIRST)
    fixed = np.array([*_FIRST, NO_LABEL_COLOUR], np.uint8)
    distance = np.linalg.norm(lab[:, None] - to_lab(fixed), axis=2).min(1)
    while len(chosen) < count:
        best = int(distance.argmax())
        chosen.append(tuple(int(c) for c in cube[best]))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return np.array(chosen[:count], np.uint8).reshape(count, 3)
