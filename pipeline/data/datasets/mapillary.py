"""Mapillary Vistas by its 66 classes of v1.2, from a v1.x or a v2.0 download.

    {training,validation}/images/<key>.jpg
    {training,validation}/labels/<key>.png         v1.x: palette PNG
    {training,validation}/v1.2/labels/<key>.png    v2.0: the same labels; those of v2.0 lie beside

The palette index is the position in `config.json`; 65 is Unlabeled. The 22-character keys may begin
with "-" or "_" and differ by case alone.
"""

from collections.abc import Collection
from typing import ClassVar

from pipeline.data.datasets.base import Listing, Masks, Reader, Source, Split, pair, safe_key
from pipeline.data.pixels.official import decode_16bit_png
from pipeline.storage.archives.packed import Packing

_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


class Mapillary(Reader):
    """65 classes of streets all over the world."""

    name = "mapillary"
    layout = "{training,validation}/images and {training,validation}/{v1.2/labels or labels}"
    inner_folders: ClassVar = ("training", "validation", "testing")
    packings: ClassVar = (
        Packing("mapillary-vistas-dataset_public_v*.zip", "training/images", whole=True),
    )
    published: ClassVar = {"train": 18_000, "val": 2_000}
    needs_one_of = ("training/images", "validation/images")
    label_modes = ("P",)

    def _listing(self, split: Split) -> Listing:
        folder = _FOLDERS[split]
        images = self._files(f"{folder}/images", ".jpg")
        of_v2 = "labels" in self.root.folders(self._path(folder, "v1.2"))
        below = f"{folder}/v1.2/labels" if of_v2 else f"{folder}/labels"
        labels = self._files(below, ".png", role="label")
        return pair(images, labels, safe_key)

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by value in `instances/`, 256 classes plus a count; see `Reader.segment_masks`."""
        folder, _, name = source.label.rpartition("/labels/")
        path = f"{folder}/instances/{name}"
        values = decode_16bit_png(self._read_segments(path), path)
        return {number: values == number for number in segments}
