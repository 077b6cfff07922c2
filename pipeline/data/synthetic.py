"""The mini-seven: small rendered scenes, so that the whole system runs without a download.

A scene is a painted background with a few objects. The paint of a class - its colour and the
colours of four textures - is one fixed linear function of the text vector of its label. What a
network learns about the paint of some labels therefore holds for labels it never saw, which makes
zero-shot results on these pictures real and measurable. Noise, lighting, tint and blur differ by
dataset.

`synthetic_layout.py` writes the scenes in the official layout and label encoding of each dataset.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.taxonomy import native_table

APPEARANCE_DIMS = 15
"""Numbers that describe a paint: 3 for the mean colour and 3 for the colour of each texture."""

HELD_OUT = (
    # Words of these labels occur in labels that training sees ...
    "traffic_light",
    "pool_table",
    "shower_curtain",
    "window_blind",
    "baseball_bat",
    "hot_dog",
    # ... and words of these do not.
    "horse",
    "bus",
    "fire_hydrant",
    "autorickshaw",
)
"""Universal classes that never occur in training scenes and always in some validation scenes."""

SUPER_CLASSES: dict[str, tuple[str, ...]] = {
    "traffic": ("traffic_sign", "traffic_light"),
    "baseball": ("baseball_glove", "baseball_bat"),
    "curtain": ("curtain_other", "shower_curtain"),
    "pool": ("swimming_pool", "pool_table"),
}
"""Words that name several classes at once, and the members they should find."""


COLOUR_GAIN = 42.0
"""Grey levels of one unit of mean colour."""

PAINT_SPREAD = 0.3
"""Standard deviation of the numbers of a paint from one object of a class to the next."""

TEXTURE_GAIN = 50.0
"""Grey levels of one unit of texture."""


@dataclass(frozen=True)
class World:
    """How the scenes of one dataset are built and how its camera sees."""

    size: tuple[int, int]
    """Width and height in pixels."""
    far: tuple[str, ...]
    """Universal classes of the upper part of a scene."""
    near: tuple[str, ...]
    """Universal classes of the lower part."""
    tint: tuple[float, float, float]
    """Gain of the red, green and blue channel."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""
    blur: float
    """Standard deviation of the lens blur, in pixels."""


_STREET = ("sky", "building", "vegetation"), ("road", "terrain", "sidewalk_pavement")
_ROOM = ("wall", "window", "curtain_other"), ("floor", "cabinet", "bed")

WORLDS: dict[str, World] = {
    "ade20k": World((144, 112), *_ROOM, (1.0, 1.0, 1.0), 4.0, 0.0),
    "bdd100k": World((160, 96), *_STREET, (0.95, 1.0, 1.05), 8.0, 0.4),
    "cityscapes": World((192, 96), *_STREET, (0.92, 1.04, 0.98), 3.0, 0.4),
    "coco_panoptic": World(
        (128, 128),
        ("sky", "vegetation", "wall"),
        ("terrain", "sea", "snow"),
        (1.04, 1.0, 0.96),
        5.0,
        0.0,
    ),
    "idd": World(
        (176, 96), _STREET[0], ("road", "sidewalk_pavement"), (1.05, 1.0, 0.9), 7.0, 0.5
    ),
    "mapillary": World(
        (176, 128), _STREET[0], ("road", "water_other", "snow"), (0.97, 0.98, 1.03), 5.0, 0.6
    ),
    "sunrgbd": World((144, 112), *_ROOM, (1.03, 0.97, 0.95), 9.0, 0.3),
}

MAX_THINGS = 26
"""Classes of objects in the scenes of one dataset, besides the held-out ones."""


@cache
def things(dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes of a dataset's objects: those that training sees, and those held out.

    They are spread over the dataset's own table of classes.
    """
    world = WORLDS[dataset]
    reached = [entry.universal_name for entry in native_table(dataset)]
    named = sorted({name for name in reached if name} - {*world.far, *world.near})
    seen = [name for name in named if name not in HELD_OUT]
    count = min(len(seen), MAX_THINGS)
    spread = {seen[i * len(seen) // count] for i in range(count)}
    members = {name for group in SUPER_CLASSES.values() for name in group}
    return tuple(sorted(spread | (members & set(seen)))), tuple(name for name in named if name in HELD_OUT)


@dataclass(frozen=True)
class Region:
    """One painted polygon of a scene; later regions cover earlier ones."""

    universal_name: str | None
    """Universal class, or `None` for a part that no dataset labels."""
    polygon: tuple[tuple[int, int], ...]
    """Corners as (x, y) in pixels."""


@dataclass(frozen=True)
class Scene:
    """A picture and the regions it was painted from."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    regions: tuple[Region, ...]


def label_words(universal_name: str) -> str:
    """The label as text: `traffic_light` -> `traffic light`."""
    return universal_name.replace("_", " ")


def world_classes() -> tuple[str, ...]:
    """All universal classes that the mini-seven paints, sorted."""
    names = {name for world in WORLDS.values() for name in (*world.far, *world.near)}
    for dataset in WORLDS:
        names.update(*things(dataset))
    return tuple(sorted(names))


def render_scene(
    dataset: str, split: str, index: int, vectors: Mapping[str, np.ndarray], seed: int
) -> Scene:
    """Renders one scene; a pure function of its arguments.

    Args:
        dataset: A key of `WORLDS`.
        split: `"train"` shows no class of `HELD_OUT`; in `"val"` every second object is of one.
        index: Number of the scene within the split.
        vectors: Text vector (C,) float32 of each universal class of the world, L2-normalised.
        seed: Changes every scene.
    """
    world = WORLDS[dataset]
    rng = np.random.Generator(np.random.PCG64(_seed(dataset, split, index, seed)))
    regions = _compose(dataset, split, rng)
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


def _compose(dataset: str, split: str, rng: np.random.Generator) -> list[Region]:
    world = WORLDS[dataset]
    width, height = world.size
    horizon = int(height * rng.uniform(0.35, 0.65))
    tilt = int(height * rng.uniform(-0.08, 0.08))
    seam = int(width * rng.uniform(0.3, 0.7))
    left, right = rng.permutation(list(world.far))[:2]
    near = str(rng.choice(list(world.near)))
    edge = (width - 1, height - 1)
    regions = [
        Region(str(left), ((0, 0), (edge[0], 0), edge, (0, edge[1]))),
        Region(str(right), ((seam, 0), (edge[0], 0), edge, (seam, edge[1]))),
        Region(near, ((0, horizon + tilt), (edge[0], horizon - tilt), edge, (0, edge[1]))),
    ]
    seen, unseen = things(dataset)
    for number in range(int(rng.integers(3, 7))):
        pool = unseen if split == "val" and number % 2 == 0 and unseen else seen
        regions.append(Region(str(rng.choice(list(pool))), _outline(width, height, rng)))
    if rng.random() < 0.2:
        regions.append(Region(None, _outline(width // 2, height // 2, rng)))
    return regions


def _outline(width: int, height: int, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """An irregular convex-ish outline between 20 and 45 % of the picture's height in radius."""
    corners = int(rng.integers(4, 11))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) * 2 * np.pi / corners)
    radius = height * rng.uniform(0.17, 0.3)
    stretch = rng.uniform(0.8, 1.4)
    x = width * rng.uniform(0.12, 0.88) + radius * stretch * np.cos(angles)
    y = height * rng.uniform(0.25, 0.85) + radius * np.sin(angles)
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
    colours = (_projection(len(vector)) @ vector).reshape(-1, 3).astype(np.float32)
    # Each object of a class differs a little from the next.
    colours += rng.normal(0, PAINT_SPREAD, colours.shape).astype(np.float32)
    x, y = np.meshgrid(np.arange(width) + rng.integers(12), np.arange(height) + rng.integers(12))
    bars, rows = x % 6 < 2, y % 6 < 2
    dots = (x % 12 < 6) & (y % 12 < 6)
    # Each covers less than half of the area, so that bright on dark is not dark on bright.
    textures = (bars, rows, bars ^ rows, dots)
    canvas = np.full((height, width, 3), 128.0, np.float32)
    canvas += COLOUR_GAIN * colours[0]
    for texture, colour in zip(textures, colours[1:], strict=True):
        pattern = texture - np.float32(texture.mean())
        canvas += TEXTURE_GAIN * pattern[:, :, None] * colour
    return canvas


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


def _seed(dataset: str, split: str, index: int, seed: int) -> int:
    digest = hashlib.sha256(f"{dataset}/{split}/{index}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
