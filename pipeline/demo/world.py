"""The mini-seven: small rendered scenes, so that the whole system runs without a download.

A scene is a painted background with a few objects. The paint of a class is a small tile of six
colours, which are one fixed linear function of the text vector of its label. What a network learns
about the paint of some labels therefore holds for labels it never saw, which makes zero-shot
results on these images real and measurable. Noise, lighting, tint and blur differ by dataset.

`layouts.py` writes the scenes in the official layout and label encoding of each dataset.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.taxonomy import label_text, native_table
from pipeline.evaluation.behaviours.classes import HELD_OUT, SUPER_CLASSES

TILE_PX = 8
"""Side of the tile that a paint repeats. Tiles lie on one grid for the whole image, so crops on
that grid (`augment.grid_px`) show each patch of a small ViT a whole tile."""

APPEARANCE_DIMS = 18
"""Numbers that describe a paint: six colours of three channels. The stand-in's vectors lie in a
subspace of 17 dimensions, so nothing of a label's meaning is lost in its paint."""


_ALWAYS = frozenset({"light_other", "table", "shower"}.union(*SUPER_CLASSES.values()))
"""Classes that scenes show wherever the dataset has them."""

COLOUR_GAIN = 45.0
"""Grey levels of one unit of colour."""

PAINT_SPREAD = 0.15
"""Standard deviation of the numbers of a paint from one object of a class to the next."""


@dataclass(frozen=True)
class World:
    """The images of one dataset and how its camera sees."""

    size: tuple[int, int]
    """Width and height in pixels."""
    tint: tuple[float, float, float]
    """Gain of the red, green and blue channel."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""
    blur: float
    """Standard deviation of the lens blur, in pixels."""


WORLDS: dict[str, World] = {
    "ade20k": World((160, 120), (1.0, 1.0, 1.0), 4.0, 0.0),
    "bdd100k": World((160, 96), (0.95, 1.0, 1.05), 8.0, 0.4),
    "cityscapes": World((160, 80), (0.92, 1.04, 0.98), 3.0, 0.4),
    "coco_panoptic": World((160, 152), (1.04, 1.0, 0.96), 5.0, 0.0),
    "idd": World((160, 88), (1.05, 1.0, 0.9), 7.0, 0.5),
    "mapillary": World((160, 112), (0.97, 0.98, 1.03), 5.0, 0.6),
    "sunrgbd": World((160, 128), (1.03, 0.97, 0.95), 9.0, 0.3),
}

MAX_CLASSES = 60
"""Classes in the training scenes of one dataset, about."""


@cache
def classes_of(dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The universal classes of a dataset's scenes: those that training sees, and those held out.

    They are spread over the dataset's own table.
    """
    named = sorted(
        {e.universal_name for e in native_table(dataset, overridden=True) if e.universal_name}
    )
    seen = [name for name in named if name not in HELD_OUT]
    count = min(len(seen), MAX_CLASSES)
    spread = {seen[i * len(seen) // count] for i in range(count)}
    chosen = tuple(sorted(spread | (_ALWAYS & set(seen))))
    return chosen, tuple(name for name in named if name in HELD_OUT)


@dataclass(frozen=True)
class Region:
    """One painted polygon of a scene; later regions cover earlier ones."""

    universal_name: str | None
    """Universal class, or `None` for a part that no dataset labels."""
    polygon: tuple[tuple[int, int], ...]
    """Corners as (x, y) in pixels."""


@dataclass(frozen=True)
class Scene:
    """An image and the regions it was painted from."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[Region, ...]


def world_classes() -> tuple[str, ...]:
    """All universal classes that the mini-seven paints, sorted."""
    names = {name for dataset in WORLDS for group in classes_of(dataset) for name in group}
    return tuple(sorted(names))


def render_scene(
    dataset: str, split: str, index: int, vectors: Mapping[str, np.ndarray], seed: int
) -> Scene:
    """Renders one scene; a pure function of its arguments.

    Args:
        dataset: A key of `WORLDS`.
        split: `"train"` shows no class of `HELD_OUT`; in `"val"` every second scene does.
        index: Number of the scene within the split.
        vectors: Text vector (C,) float32 of each universal class of the world, L2-normalised.
        seed: Changes every scene.
    """
    world = WORLDS[dataset]
    digest = hashlib.sha256(f"{dataset}/{split}/{index}/{seed}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    zero_shot = split == "val" and index % 2 == 0
    regions = _compose(dataset, index // 2 if zero_shot else None, rng)
    width, height = world.size
    canvas = np.zeros((height, width, 3), np.float32)
    for region in regions:
        mask = rasterise(region.polygon, width, height)
        canvas[mask] = _paint(region.universal_name, vectors, width, height, rng)[mask]
    return Scene(_camera(canvas, world, rng), tuple(regions))


def rasterise(polygon: tuple[tuple[int, int], ...], width: int, height: int) -> np.ndarray:
    """The pixels of a polygon, its border included: (height, width) bool."""
    mask = Image.new("1", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon], fill=1)
    return np.asarray(mask)


def _compose(dataset: str, zero_shot: int | None, rng: np.random.Generator) -> list[Region]:
    """The regions of a scene; every second object of the n-th zero-shot one is held out.

    Held-out classes take turns, so that each dataset shows all that it has.

    Nothing else in a zero-shot scene shares a word with a held-out label: "window blind" would be
    no wrong answer to a window.
    """
    size = width, height = WORLDS[dataset].size
    horizon = int(height * rng.uniform(0.35, 0.65))
    tilt = int(height * rng.uniform(-0.08, 0.08))
    seam = int(width * rng.uniform(0.3, 0.7))
    seen, unseen = classes_of(dataset)
    if zero_shot is not None:
        words = {word for name in HELD_OUT for word in label_text(name).split()}
        seen = tuple(name for name in seen if not words & set(label_text(name).split()))
    left, right, near = rng.choice(seen, 3, replace=False).tolist()
    edge = (width - 1, height - 1)
    regions = [
        Region(left, ((0, 0), (edge[0], 0), edge, (0, edge[1]))),
        Region(right, ((seam, 0), (edge[0], 0), edge, (seam, edge[1]))),
        Region(near, ((0, horizon + tilt), (edge[0], horizon - tilt), edge, (0, edge[1]))),
    ]
    count = int(rng.integers(2, 5))
    for number, slot in enumerate(rng.permutation(count).tolist()):
        pool = seen
        if zero_shot is not None and number % 2 == 0:
            pool = (unseen[(zero_shot + number // 2) % len(unseen)],)
        centre = width * (slot + rng.uniform(0.35, 0.65)) / count
        reach = min(0.5 * width / count, 0.4 * height)
        regions.append(Region(str(rng.choice(pool)), _outline(size, centre, reach, rng)))
    if rng.random() < 0.2:
        blot = _outline(size, width * rng.uniform(0.1, 0.9), 0.1 * height, rng)
        regions.append(Region(None, blot))
    return regions


def _outline(
    size: tuple[int, int], centre: float, reach: float, rng: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    """An irregular outline of 4 to 10 corners, about `reach` pixels in radius."""
    width, height = size
    corners = int(rng.integers(4, 11))
    angles = (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) * 2 * np.pi / corners
    radius = reach * rng.uniform(0.75, 1.15)
    x = centre + radius * np.cos(angles)
    y = height * rng.uniform(0.35, 0.75) + radius * np.sin(angles)
    points = zip(x.round().astype(int).tolist(), y.round().astype(int).tolist(), strict=True)
    return tuple((min(max(px, 0), width - 1), min(max(py, 0), height - 1)) for px, py in points)


def _paint(
    name: str | None,
    vectors: Mapping[str, np.ndarray],
    width: int,
    height: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """A canvas full of one class's paint: (height, width, 3) float32, about 0..255."""
    if name is None:
        return rng.uniform(0, 255, (height, width, 3)).astype(np.float32)
    vector = vectors[name]
    colours = (_projection(len(vector)) @ vector).reshape(6, 3)
    # Each object of a class differs a little from the next.
    colours = colours + rng.normal(0, PAINT_SPREAD, colours.shape)
    # The tile mirrors itself, so that a flipped image shows the same paint.
    column = np.minimum(np.arange(TILE_PX), TILE_PX - 1 - np.arange(TILE_PX)) // (TILE_PX // 4)
    row = np.arange(TILE_PX) * 3 // TILE_PX
    tile = (128 + COLOUR_GAIN * colours)[2 * row[:, None] + column[None, :]].astype(np.float32)
    repeats = (-(-height // TILE_PX), -(-width // TILE_PX), 1)
    return np.tile(tile, repeats)[:height, :width]


def _camera(canvas: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """Lighting, tint, blur and noise: (H, W, 3) uint8."""
    light = rng.uniform(0.85, 1.15)
    slope = rng.uniform(-0.1, 0.1)
    ramp = 1 + slope * np.linspace(-1, 1, canvas.shape[1], dtype=np.float32)
    image = canvas * (light * ramp)[None, :, None] * np.array(world.tint, np.float32)
    if world.blur:
        image = cv2.GaussianBlur(image, (0, 0), world.blur)
    image += rng.normal(0, world.noise, image.shape)
    return np.clip(image.round(), 0, 255).astype(np.uint8)


@cache
def _projection(width: int) -> np.ndarray:
    """The fixed linear map from text vectors to paints: (APPEARANCE_DIMS, width).

    Its rows are orthogonal, as far as there are dimensions, so that no meaning is lost on the way;
    for vectors of length 1 the numbers of a paint have a variance of about 1.
    """
    side = max(width, APPEARANCE_DIMS)
    gaussian = np.random.Generator(np.random.PCG64(20220107)).normal(size=(side, side))
    rotation = np.linalg.qr(gaussian)[0]
    return rotation[:APPEARANCE_DIMS, :width] * np.sqrt(width)
