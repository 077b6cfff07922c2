"""ADE20K as prepared for the scene parsing challenge: `ADEChallengeData2016.zip`.

    images/{training,validation}/ADE_{train,val}_%08d.jpg
    annotations/{training,validation}/ADE_{train,val}_%08d.png    8-bit: 0 other, 1..150

The values follow the order of `objectInfo150.txt`, and the table has the same: nothing is shifted.
"""

from collections.abc import Collection
from typing import ClassVar

import cv2
import numpy as np

from pipeline.data.datasets.base import Listing, Masks, Reader, Source, Split, pair, safe_key
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.pixels.official import decode_rgb_png
from pipeline.data.taxonomy import IGNORE
from pipeline.storage.archives.packed import Packing
from pipeline.storage.open import open_storage

_LAST_ID = 150
_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


class ADE20K(Reader):
    """150 classes of indoor and outdoor scenes."""

    name = "ade20k"
    layout = "images/{training,validation} and annotations/{training,validation}"
    inner_folders: ClassVar = ("images", "annotations")
    packings: ClassVar = (Packing("ADEChallengeData2016*.zip", "ADEChallengeData2016", whole=True),)
    published: ClassVar = {"train": 20_210, "val": 2_000}
    needs = ("images", "annotations")
    needs_one_of = ("annotations/training", "annotations/validation")

    def _listing(self, split: Split) -> Listing:
        images = self._files(f"images/{_FOLDERS[split]}", ".jpg")
        labels = self._files(f"annotations/{_FOLDERS[split]}", ".png", role="label")
        # The official names never differ by case alone.
        return pair(images, labels, lambda name: safe_key(name.lower()))

    def remarks(self, native_pixels: np.ndarray) -> list[str]:
        """Ids that were shifted down by one for a training, of which 0 for other became 255."""
        if not native_pixels[IGNORE] or native_pixels[_LAST_ID]:
            return []
        return [
            f"the labels hold 255 and no {_LAST_ID}: they look shifted by one (0 to 149, and 255 "
            "for other), and 0 for other and 1 to 150 are read: give the official annotations"
        ]

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by blue value in the full release's `*_seg.png`; see `Reader.segment_masks`."""
        size = self._decode(self._read_segments(source.label), source).shape
        place = source.extra["full_release"]
        with bad_sample_errors(place):
            root, _, name = place.rpartition("/")
            try:
                data = open_storage(root).read(name)
            except FileNotFoundError as error:
                raise BadSample(f"{place}: must be there for the relabelling") from error
            blue = decode_rgb_png(data, place)[..., 2]
        # The challenge shrank the images of the release, whose labels this follows.
        blue = cv2.resize(blue, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return {number: blue == number for number in segments}
