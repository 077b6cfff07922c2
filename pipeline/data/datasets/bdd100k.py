"""BDD100K semantic segmentation of its 10K images, in the layouts of 2021 and of 2018.

    2021: images/10k/{train,val}/<id>.jpg
          labels/sem_seg/masks/{train,val}/<id>.png        8-bit train ids, 255 unknown
          labels/sem_seg/colormaps/{train,val}/<id>.png    palette PNGs; the index is the train id
    2018: seg/images/{train,val}/<id>.jpg
          seg/labels/{train,val}/<id>_train_id.png         8-bit train ids, 255 unknown

Where a mask and a colormap exist the mask is read. The 2021 archives first came with images and
labels whose names do not match, hence the left-out list of a listing matters here.
"""

from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import Listing, Reader, Source, Split, has_folders, pair, safe_key
from pipeline.data.pixels.official import decode_index_png
from pipeline.storage.archives.packed import Packing
from pipeline.storage.base import Storage

_MASKS = "labels/sem_seg/masks"
_COLORMAPS = "labels/sem_seg/colormaps"


class BDD100K(Reader):
    """19 classes of roads in the United States."""

    name = "bdd100k"
    layout = (
        "images/10k/{train,val} and labels/sem_seg/{masks or colormaps}/{train,val} (2021), or "
        "seg/images/{train,val} and seg/labels/{train,val} (2018)"
    )
    inner_folders: ClassVar = ("images", "labels", "seg")
    packings: ClassVar = (
        Packing("bdd100k_images_10k*.zip", "bdd100k/images/10k"),
        Packing("bdd100k_sem_seg_labels_trainval*.zip", "bdd100k/labels/sem_seg"),
        Packing("bdd100k_seg*.zip", "bdd100k/seg", whole=True),
    )
    published: ClassVar = {"train": 7_000, "val": 1_000}

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        return _is_2021(root, base) or _is_2018(root, base)

    def _listing(self, split: Split) -> Listing:
        if _is_2021(self.root, self.base):
            images = self._files(f"images/10k/{split}", ".jpg")
            colormaps = self._files(f"{_COLORMAPS}/{split}", ".png", role="label")
            labels = colormaps | self._files(f"{_MASKS}/{split}", ".png", role="label")
        else:
            images = self._files(f"seg/images/{split}", ".jpg")
            labels = self._files(f"seg/labels/{split}", "_train_id.png", role="label", also=("",))
        return pair(images, labels, safe_key)

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        # A grey colormap holds the brightness of the colours: no ids can be read from it.
        is_colormap = source.label.startswith(self._path(_COLORMAPS) + "/")
        return decode_index_png(data, source.label, ("P",) if is_colormap else ("L", "P"))


def _is_2021(root: Storage, base: str) -> bool:
    return has_folders(root, base, "images/10k") and (
        has_folders(root, base, _MASKS) or has_folders(root, base, _COLORMAPS)
    )


def _is_2018(root: Storage, base: str) -> bool:
    return has_folders(root, base, "seg/images", "seg/labels")
