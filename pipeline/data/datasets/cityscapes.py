"""Cityscapes' fine annotations: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`.

    leftImg8bit/{train,val}/{city}/{city}_{sequence}_{frame}_leftImg8bit.png
    gtFine/{train,val}/{city}/{city}_{sequence}_{frame}_gtFine_labelIds.png    8-bit raw ids 0..33

The raw ids are read, not the train ids, whose files are no part of the download. The license plate
has the raw id -1 and is not drawn in the files: its pixels are the vehicle's.
"""

import re
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import Listing, Masks, Reader, Source, Split, pair, safe_key
from pipeline.data.datasets.polygons import first_names, polygon_masks
from pipeline.data.taxonomy import IGNORE
from pipeline.storage.archives.packed import Packing
from pipeline.storage.base import Storage

_LAST_TRAIN_ID = 19
"""The 19 classes are 0 to 18, after which some tools write all others."""
_MANY = 10
_LABEL_FILE = re.compile(r"[^/]+_\d{6}_\d{6}_gtFine_\w+\.(png|json)")


class Cityscapes(Reader):
    """Roads in 50 cities, by the 19 classes of the benchmark."""

    name = "cityscapes"
    layout = "leftImg8bit/{train,val} and gtFine/{train,val}"
    inner_folders: ClassVar = ("leftImg8bit", "gtFine")
    packings: ClassVar = (
        Packing("leftImg8bit_trainvaltest*.zip", "leftImg8bit"),
        Packing("gtFine_trainvaltest*.zip", "gtFine"),
    )
    published: ClassVar = {"train": 2_975, "val": 500}

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        # IDD has the same folders, with other names in them.
        return any(_LABEL_FILE.fullmatch(name) for name in first_names(root, base))

    def _listing(self, split: Split) -> Listing:
        images = self._files(f"leftImg8bit/{split}", "_leftImg8bit.png")
        labels = self._files(f"gtFine/{split}", "_gtFine_labelIds.png", role="label", also=("",))
        # A file's name repeats its city, so it is unique without the folder.
        return pair(images, labels, lambda name: safe_key(name.rpartition("/")[2]))

    def remarks(self, native_pixels: np.ndarray) -> list[str]:
        """Train ids, 0 to 18 and others as 255 or 19, under the name of the raw ids.

        Those are never 255, and many of them together include a car, a tree or the sky, which come
        after 19; a few may do without.
        """
        seen = np.flatnonzero(native_pixels[:IGNORE])
        if not seen.size or seen[-1] > _LAST_TRAIN_ID:
            return []
        if not native_pixels[IGNORE] and seen.size < _MANY:
            return []
        also = "255 and " if native_pixels[IGNORE] else ""
        return [
            f"the labels hold {also}nothing above {seen[-1]}: they look like train ids, and raw "
            "ids 0 to 33 are read: give the official *_gtFine_labelIds.png"
        ]

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by the polygons' `id` or position; see `Reader.segment_masks`."""
        path = source.label.removesuffix("_labelIds.png") + "_polygons.json"
        return polygon_masks(self._read_segments(path), path, segments)
