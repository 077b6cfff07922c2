"""Polygon annotations in the form that Cityscapes and IDD share."""

import json
import math
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.pixels.checks import bad_sample_errors, check_size

LIMIT_PX = 1_000_000
"""Points may lie outside the image, but not so far that the drawing overflows."""


def polygon_masks(
    data: bytes, path: str, numbers: Collection[int], max_pixels: int
) -> dict[int, np.ndarray]:
    """Draws single polygons, numbered by their field `id` or else by their position, from 0.

    Args:
        data: The JSON.
        path: Names the file in errors.
        numbers: Which polygons.
        max_pixels: The limit of the image's size.

    Returns:
        For each polygon that is there and not deleted, (H, W) bool.

    Raises:
        BadSample: The file is damaged or too large.
    """
    masks = {}
    with bad_sample_errors(path):
        annotation = json.loads(data)
        width, height = int(annotation["imgWidth"]), int(annotation["imgHeight"])
        check_size(path, width, height, max_pixels)
        for position, item in enumerate(annotation["objects"]):
            number = item.get("id", position)
            points = [(float(x), float(y)) for x, y in item.get("polygon") or ()]
            if number not in numbers or item.get("deleted") or len(points) < 3:
                continue
            if not all(math.isfinite(v) and abs(v) < LIMIT_PX for point in points for v in point):
                continue
            mask = Image.new("1", (width, height))
            ImageDraw.Draw(mask).polygon(points, fill=1)
            masks[int(number)] = np.asarray(mask)
    return masks
