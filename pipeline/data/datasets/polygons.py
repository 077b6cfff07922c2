"""Polygon annotations in the form that Cityscapes and IDD share."""

import json
import math
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.pixels.checks import MAX_PIXELS, bad_sample_errors, check_size
from pipeline.storage.base import Storage

Points = list[tuple[float, float]]
_LIMIT_PX = 1_000_000
"""Points may lie outside the image, but not so far that the drawing overflows."""


def polygon_masks(data: bytes, path: str, numbers: Collection[int]) -> dict[int, np.ndarray]:
    """Draws single polygons, numbered by their field `id` or else by their position, from 0.

    Returns:
        For each polygon that is there and not deleted, (H, W) bool.

    Raises:
        BadSample: The file is damaged or too large.
    """
    masks = {}
    with bad_sample_errors(path):
        size, objects = read_objects(data, path)
        for position, item, points in objects:
            number = item.get("id", position)
            if number in numbers and is_drawable(points):
                mask = Image.new("1", size)
                ImageDraw.Draw(mask).polygon(points, fill=1)
                masks[int(number)] = np.asarray(mask)
    return masks


def read_objects(
    data: bytes, path: str
) -> tuple[tuple[int, int], Iterator[tuple[int, dict[str, Any], Points]]]:
    """Width and height of the image, and position, fields and points of each polygon in it."""
    annotation = json.loads(data)
    size = int(annotation["imgWidth"]), int(annotation["imgHeight"])
    check_size(path, *size, MAX_PIXELS)
    objects = (
        (position, item, [(float(x), float(y)) for x, y in item["polygon"]])
        for position, item in enumerate(annotation["objects"])
        if not item.get("deleted") and len(item["polygon"] or ()) >= 3
    )
    return size, objects


def is_drawable(points: Points) -> bool:
    """Whether no point lies too far away to be drawn."""
    return all(
        math.isfinite(value) and abs(value) < _LIMIT_PX for point in points for value in point
    )


def first_names(root: Storage, base: str) -> list[str]:
    """The names of the first few files below `gtFine`, by which the two datasets differ."""
    entries = islice(root.list(f"{base}/gtFine".strip("/")), 20)
    return [entry.path.rpartition("/")[2] for entry in entries]
