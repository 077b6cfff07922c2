"""Polygon annotations in the form that Cityscapes and IDD share."""

import json
import math
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.pixels.checks import MAX_PIXELS, BadSample, bad_sample_errors, check_size
from pipeline.storage.base import Storage

Points = list[tuple[float, float]]
_LIMIT_PX = 1_000_000
"""Points may lie outside the image, but not so far that the drawing overflows."""
_MAX_BYTES = 64 << 20
_MAX_WORK = 500_000_000
"""Edges times rows of one file: a second or two. The largest real files have about 20 million."""
_PIXELS_AN_EDGE = 16
"""Pixels that are filled in the time in which an edge is compared with a row."""


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
    """Width and height of the image, and position, fields and points of each polygon in it.

    Raises:
        BadSample: The file is damaged, lacks something, or would take too long to draw.
    """
    if len(data) > _MAX_BYTES:
        raise BadSample(f"{path}: has {len(data)} bytes: must be at most {_MAX_BYTES}")
    with bad_sample_errors(path):
        annotation = json.loads(data)
    if not isinstance(annotation, dict):
        raise BadSample(f"{path}: must hold one JSON object")
    width, height = (_side(annotation, key, path) for key in ("imgWidth", "imgHeight"))
    check_size(path, width, height, MAX_PIXELS)
    objects = annotation.get("objects")
    if not isinstance(objects, list):
        raise BadSample(f"{path}: has no list of objects")
    return (width, height), _polygons(objects, path, width, height)


def _side(annotation: dict[str, Any], key: str, path: str) -> int:
    if key not in annotation:
        raise BadSample(f"{path}: has no {key}")
    value = annotation[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise BadSample(f"{path}: {key}={str(value)[:40]}: must be a number of pixels")
    return int(value)


def _polygons(
    objects: list[Any], path: str, width: int, height: int
) -> Iterator[tuple[int, dict[str, Any], Points]]:
    """The polygons of a file, as long as their drawing takes no more time than real ones do."""
    work = 0
    for position, item in enumerate(objects):
        where = f"{path}: objects[{position}]"
        if not isinstance(item, dict):
            raise BadSample(f"{where} is no object")
        if item.get("deleted"):
            continue
        for key in ("polygon", "label"):
            if key not in item:
                raise BadSample(f"{where} has no {key}")
        corners = item["polygon"]
        if corners is None or (isinstance(corners, list) and len(corners) < 3):
            continue
        if not isinstance(corners, list):
            raise BadSample(f"{where}.polygon: must be a list of points")
        # Pillow compares every edge with every row, and fills each row up to its width.
        work += len(corners) * height + width * height // _PIXELS_AN_EDGE
        if work > _MAX_WORK:
            raise BadSample(f"{where}.polygon: the file has more points than can be drawn in time")
        try:
            points = [(float(x), float(y)) for x, y in corners]
        except (TypeError, ValueError, OverflowError):
            raise BadSample(f"{where}.polygon: must be a list of points [x, y]") from None
        yield position, item, points


def is_drawable(points: Points) -> bool:
    """Whether no point lies too far away to be drawn."""
    return all(
        math.isfinite(value) and abs(value) < _LIMIT_PX for point in points for value in point
    )


def first_names(root: Storage, base: str) -> list[str]:
    """The names of the first few files below `gtFine`, by which the two datasets differ."""
    entries = islice(root.list(f"{base}/gtFine".strip("/")), 20)
    return [entry.path.rpartition("/")[2] for entry in entries]
