"""ADE20K as prepared for the scene parsing challenge: `ADEChallengeData2016.zip`.

    images/{training,validation}/ADE_{train,val}_%08d.jpg
    annotations/{training,validation}/ADE_{train,val}_%08d.png    8-bit: 0 other, 1..150

The values follow the order of `objectInfo150.txt`, and the table has the same: nothing is shifted.
"""

from collections.abc import Collection
from typing import ClassVar

import cv2
import numpy as np

from pipeline.data.datasets.base import (
    Listing,
    Masks,
    Reader,
    Source,
    Split,
    has_folders,
    pair,
    safe_key,
)
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.pixels.official import decode_index_png, decode_rgb_png
from pipeline.storage.archives.packed import Packing
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


class ADE20K(Reader):
    """150 classes of indoor and outdoor scenes."""

    name = "ade20k"
    layout = "images/{training,validation} and annotations/{training,validation}"
    inner_folders: ClassVar = ("images", "annotations")
    packings: ClassVar = (Packing("ADEChallengeData2016*.zip", "ADEChallengeData2016", whole=True),)
    published: ClassVar = {"train": 20_210, "val": 2_000}

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        return has_folders(root, base, "images", "annotations") and any(
            has_folders(root, base, f"annotations/{folder}") for folder in _FOLDERS.values()
        )

    def listing(self, split: Split) -> Listing:
        """Pairs the images and labels of a split; see `Reader.listing`."""
        images = self._files(f"images/{_FOLDERS[split]}", ".jpg")
        labels = self._files(f"annotations/{_FOLDERS[split]}", ".png")
        # The official names never differ by case alone.
        keys = {name: safe_key(name.lower()) for name in images}
        return self._complete(split, pair(images, labels, keys))

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by blue value in the full release's `*_seg.png`; see `Reader.segment_masks`."""
        size = self._decode(self._read(source.label), source).shape
        place = source.extra["full_release"]
        with bad_sample_errors(place):
            root, _, name = place.rpartition("/")
            try:
                data = open_storage(root).read(name)
            except FileNotFoundError as error:
                raise BadSample(f"{place}: must be there for the relabelling") from error
            blue = decode_rgb_png(data, place, self.max_pixels)[..., 2]
        # The challenge shrank the images of the release, whose labels this follows.
        blue = cv2.resize(blue, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return {number: blue == number for number in segments}

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        return decode_index_png(data, source.label, ("L", "P"), self.max_pixels)
