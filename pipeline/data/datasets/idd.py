"""India Driving Dataset, segmentation: `idd-segmentation.tar.gz` and `idd-20k-II.tar.gz`.

    IDD_Segmentation/    part I
        leftImg8bit/{train,val}/{drive}/{id}_leftImg8bit.png
        gtFine/{train,val}/{drive}/{id}_gtFine_polygons.json
    idd20kII/            part II: the same with .jpg images and ids such as frame0029

A root that holds both parts gives both; MSeg took part I alone.

The labels are polygons and are drawn here as the dataset's own script does for its `id` column: in
the order of the file, later over earlier, on a background of `unlabeled`. The coarser `level3Id` is
not used, for some of its classes mix several universal ones.
"""

import json
import math
import posixpath
from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.datasets.base import (
    LeftOut,
    Listing,
    Masks,
    Reader,
    Source,
    Split,
    first_files,
    pair,
    safe_key,
)
from pipeline.data.datasets.cityscapes import Cityscapes
from pipeline.data.datasets.polygons import LIMIT_PX, polygon_masks
from pipeline.data.pixels.checks import BadSample, bad_sample_errors, check_size
from pipeline.data.taxonomy import native_table
from pipeline.errors import did_you_mean
from pipeline.storage.archives.packed import Packing
from pipeline.storage.base import Storage

_LABEL = "_gtFine_polygons.json"
_PART_II = "idd20kII"


class IDD(Reader):
    """39 classes of roads in India."""

    name = "idd"
    layout = "leftImg8bit/{train,val} and gtFine/{train,val} with *_gtFine_polygons.json"
    inner_folders: ClassVar = ("leftImg8bit", "gtFine")
    packings: ClassVar = (
        Packing("idd-segmentation*.t*gz", "IDD_Segmentation", whole=True),
        Packing("idd-20k-II*.t*gz", "idd20kII", whole=True),
    )
    published: ClassVar = {"train": 6_993, "val": 981}
    parts: ClassVar = frozenset({"IDD_Segmentation", _PART_II})

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        paths = first_files(root, f"{base}/gtFine".strip("/"), 20)
        has_polygons = any(path.endswith(_LABEL) for path in paths)
        return has_polygons and not Cityscapes.recognises(root, base)

    def listing(self, split: Split) -> Listing:
        """Pairs the images and labels of a split; see `Reader.listing`."""
        parts = [self._part(split, base) for base in (self.base, *self.more_bases)]
        sources: dict[str, Source] = {}
        left_out = [item for part in parts for item in part.left_out]
        for source in (source for part in parts for source in part.sources):
            if (first := sources.setdefault(source.key, source)) is not source:
                left_out.append(LeftOut(source.image, f"its key is that of {first.image}"))
        in_order = tuple(sources[key] for key in sorted(sources))
        return self._complete(split, Listing(in_order, tuple(left_out)))

    def _part(self, split: Split, base: str) -> Listing:
        suffixes = ("_leftImg8bit.png", "_leftImg8bit.jpg")
        images = self._files(f"leftImg8bit/{split}", suffixes, base)
        labels = self._files(f"gtFine/{split}", _LABEL, base)
        # The ids repeat from drive to drive; the drives' numbers do not from part to part.
        return pair(images, labels, {name: safe_key(split, *name.split("/")) for name in images})

    def published_count(self, split: Split) -> int | None:
        """The count of part I; none is known of part II."""
        folder = posixpath.basename(self.base or self.root.uri)
        is_part_i = folder != _PART_II and not self.more_bases
        return self.published[split] if is_part_i else None

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by the polygons' `id` or position; see `Reader.segment_masks`."""
        return polygon_masks(self._read(source.label), source.label, segments, self.max_pixels)

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        with bad_sample_errors(source.label):
            annotation = json.loads(data)
            width, height = int(annotation["imgWidth"]), int(annotation["imgHeight"])
            check_size(source.label, width, height, self.max_pixels)
            return _drawn(annotation["objects"], width, height, source.label)


def _drawn(objects: list[dict[str, Any]], width: int, height: int, path: str) -> np.ndarray:
    """Draws polygons: (H, W) uint8 native ids."""
    ids = {native.native_name: native.native_id for native in native_table("idd")}
    label = Image.new("L", (width, height), ids["unlabeled"])
    canvas = ImageDraw.Draw(label)
    for number, item in enumerate(objects):
        if item.get("deleted") or len(item["polygon"] or ()) < 3:
            continue
        polygon = [(float(x), float(y)) for x, y in item["polygon"]]
        name = item["label"]
        if name not in ids:
            name = name.removesuffix("group")  # several at once: "persongroup"
        if name not in ids:
            raise BadSample(
                f"{path}: objects[{number}].label={item['label']!r}: not a class of IDD"
                f"{did_you_mean(name, ids)}"
            )
        if not all(math.isfinite(v) and abs(v) < LIMIT_PX for point in polygon for v in point):
            raise BadSample(f"{path}: objects[{number}].polygon: lies too far from the image")
        canvas.polygon(polygon, fill=ids[name])
    return np.asarray(label)
