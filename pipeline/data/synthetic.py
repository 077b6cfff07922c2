"""The mini-seven: small rendered scenes, so that the whole system runs without a download.

A scene is a painted background with a few objects. The paint of a class - its colour and three line
textures - is one fixed linear function of the text vector of its label. What a network learns about
the paint of some labels therefore holds for labels it never saw, which makes zero-shot results on
these pictures real and measurable. Noise, lighting, tint and blur differ by dataset.

`synthetic_layout.py` writes the scenes in the official layout and label encoding of each dataset.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

APPEARANCE_DIMS = 12
"""Numbers that describe a paint: 3 for the mean colour and 3 for each of 3 textures."""

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


@dataclass(frozen=True)
class World:
    """What the scenes of one dataset show and how its camera sees."""

    size: tuple[int, int]
    """Width and height in pixels."""
    far: tuple[str, ...]
    """Universal classes of the upper part of a scene."""
    near: tuple[str, ...]
    """Universal classes of the lower part."""
    things: tuple[str, ...]
    """Universal classes of its objects; held-out ones appear in validation only."""
    tint: tuple[float, float, float]
    """Gain of the red, green and blue channel."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""
    blur: float
    """Standard deviation of the lens blur, in pixels."""


WORLDS: dict[str, World] = {
    "ade20k": World(
        (144, 112),
        ("wall", "ceiling", "window"),
        ("floor", "rug_floormat", "swimming_pool"),
        ("bed", "table", "lamp", "painting", "mirror", "pool_table"),
        (1.0, 1.0, 1.0),
        4.0,
        0.0,
    ),
    "bdd100k": World(
        (160, 96),
        ("sky", "building", "vegetation"),
        ("road", "terrain"),
        ("car", "truck", "person", "traffic_sign", "bus"),
        (0.95, 1.0, 1.05),
        8.0,
        0.4,
    ),
    "cityscapes": World(
        (192, 96),
        ("building", "vegetation", "sky"),
        ("road", "sidewalk_pavement"),
        ("car", "person", "bicycle", "traffic_sign", "traffic_light"),
        (0.92, 1.04, 0.98),
        3.0,
        0.4,
    ),
    "coco_panoptic": World(
        (128, 128),
        ("sky", "vegetation", "mountain_hill"),
        ("terrain", "sea", "snow"),
        ("dog", "cat", "pizza", "baseball_glove", "baseball_bat", "hot_dog", "horse"),
        (1.04, 1.0, 0.96),
        5.0,
        0.0,
    ),
    "idd": World(
        (176, 96),
        ("sky", "vegetation", "building"),
        ("road", "sidewalk_pavement"),
        ("motorcycle", "truck", "billboard", "guard_rail", "autorickshaw"),
        (1.05, 1.0, 0.9),
        7.0,
        0.5,
    ),
    "mapillary": World(
        (176, 128),
        ("sky", "building", "bridge"),
        ("road", "water_other", "snow"),
        ("bench", "mailbox", "trash_can", "car", "fire_hydrant"),
        (0.97, 0.98, 1.03),
        5.0,
        0.6,
    ),
    "sunrgbd": World(
        (144, 112),
        ("wall", "curtain_other", "window"),
        ("floor", "cabinet"),
        ("chair_other", "couch", "desk", "whiteboard", "pillow", "shower_curtain", "window_blind"),
        (1.03, 0.97, 0.95),
        9.0,
        0.3,
    ),
}


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
    worlds = WORLDS.values()
    return tuple(sorted({name for w in worlds for name in (*w.far, *w.near, *w.things)}))


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
    regions = _compose(world, split, rng)
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


def _compose(world: World, split: str, rng: np.random.Generator) -> list[Region]:
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
    seen = [name for name in world.things if name not in HELD_OUT]
    unseen = [name for name in world.things if name in HELD_OUT]
    for number in range(int(rng.integers(2, 5))):
        pool = unseen if split == "val" and number % 2 == 0 and unseen else seen
        regions.append(Region(str(rng.choice(pool)), _outline(width, height, rng)))
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
    colours = (_projection(len(vector)) @ vector).reshape(4, 3).astype(np.float32)
    # Each object of a class differs a little from the next.
    colours += rng.normal(0, 0.08, colours.shape).astype(np.float32)
    across, down = (np.arange(n) + rng.integers(0, 12) for n in (width, height))
    bars, rows = (across % 6 < 2).astype(np.float32), (down % 6 < 2).astype(np.float32)
    checks = ((across[None, :] // 3 + down[:, None] // 3) % 2).astype(np.float32)
    patterns = (
        np.ones((height, width), np.float32),
        np.broadcast_to(bars[None, :] - 1 / 3, (height, width)) * 1.5,
        np.broadcast_to(rows[:, None] - 1 / 3, (height, width)) * 1.5,
        checks * rows[:, None] - 1 / 6,
    )
    gains = (42.0, 34.0, 34.0, 34.0)
    canvas = np.full((height, width, 3), 128.0, np.float32)
    for pattern, gain, colour in zip(patterns, gains, colours, strict=True):
        canvas += gain * pattern[:, :, None] * colour
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
    """The fixed linear map from text vectors to paints: (APPEARANCE_DIMS, width)."""
    return np.random.Generator(np.random.PCG64(20220107)).normal(0, 1, (APPEARANCE_DIMS, width))


def _seed(dataset: str, split: str, index: int, seed: int) -> int:
    digest = hashlib.sha256(f"{dataset}/{split}/{index}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
