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

import posixpath
from collections.abc import Collection
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.datasets.base import Listing, Masks, Reader, Source, Split, pair, safe_key
from pipeline.data.datasets.cityscapes import Cityscapes
from pipeline.data.datasets.polygons import first_names, is_drawable, polygon_masks, read_objects
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
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
        has_polygons = any(name.endswith(_LABEL) for name in first_names(root, base))
        return has_polygons and not Cityscapes.recognises(root, base)

    def _listing(self, split: Split) -> Listing:
        parts = [self._part(split, base) for base in (self.base, *self.more_bases)]
        return Listing.of(
            (source for part in parts for source in part.sources),
            (item for part in parts for item in part.left_out),
        )

    def _part(self, split: Split, base: str) -> Listing:
        suffixes = ("_leftImg8bit.png", "_leftImg8bit.jpg")
        images = self._files(f"leftImg8bit/{split}", suffixes, base)
        labels = self._files(f"gtFine/{split}", _LABEL, base, role="label", also=("",))
        # The ids repeat from drive to drive; the drives' numbers do not from part to part.
        return pair(images, labels, lambda name: safe_key(split, *name.split("/")))

    def published_count(self, split: Split) -> int | None:
        """The count of part I; none is known of part II."""
        folder = posixpath.basename(self.base or self.root.uri)
        is_part_i = folder != _PART_II and not self.more_bases
        return self.published[split] if is_part_i else None

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by the polygons' `id` or position; see `Reader.segment_masks`."""
        return polygon_masks(self._read_segments(source.label), source.label, segments)

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        with bad_sample_errors(source.label):
            return _drawn(data, source.label)


def _drawn(data: bytes, path: str) -> np.ndarray:
    """Draws polygons: (H, W) uint8 native ids."""
    ids = {native.native_name: native.native_id for native in native_table("idd")}
    size, objects = read_objects(data, path)
    label = Image.new("L", size, ids["unlabeled"])
    canvas = ImageDraw.Draw(label)
    for number, item, points in objects:
        name = item["label"]
        if not isinstance(name, str):
            raise BadSample(f"{path}: objects[{number}].label: must be a text")
        if name not in ids:
            name = name.removesuffix("group")  # several at once: "persongroup"
        if name not in ids:
            raise BadSample(
                f"{path}: objects[{number}].label={item['label']!r}: not a class of IDD"
                f"{did_you_mean(name, ids)}"
            )
        if not is_drawable(points):
            raise BadSample(f"{path}: objects[{number}].polygon: lies too far from the image")
        canvas.polygon(points, fill=ids[name])
    return np.asarray(label)
