"""SUN RGB-D as re-organised for segmentation by chrischoy and after it by MSeg.

    image/{train,test}/img-%06d.jpg
    label37/{train,test}/%08d.png           8-bit: 0 unlabelled, 1..37; may also hold 255
    label38/{train,test}/%08d.png           the same under MSeg's name for it
    semseg-label37/{train,test}/%08d.png    as MSeg rewrites it: 0..36, 255 unlabelled

The test split serves for validation. Both splits number their images from 1.
"""

import re
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import Listing, Reader, Source, Split, has_folders, pair, safe_key
from pipeline.data.datasets.pixels import decode_index_png
from pipeline.data.storage import Storage
from pipeline.data.taxonomy import IGNORE

_FOLDERS: dict[Split, str] = {"train": "train", "val": "test"}
_SHIFTED = "semseg-label37"
_LABELS = ("label37", "label38", _SHIFTED)
_NUM_CLASSES = 37


class SUNRGBD(Reader):
    """37 classes of rooms."""

    name = "sunrgbd"
    layout = "image/{train,test} and label37/{train,test} (or label38, or semseg-label37)"
    inner_folders: ClassVar = ("image", *_LABELS)

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        return has_folders(root, base, "image") and any(
            has_folders(root, base, folder) for folder in _LABELS
        )

    def listing(self, split: Split) -> Listing:
        """Pairs the images and labels of a split; see `Reader.listing`."""
        folder = _FOLDERS[split]
        images = _by_number(self._files(f"image/{folder}", ".jpg"))
        labels: dict[str, str] = {}
        for candidate in _LABELS:
            labels = labels or _by_number(self._files(f"{candidate}/{folder}", ".png"))
        keys = {number: safe_key(split, _stem(path)) for number, path in images.items()}
        return pair(images, labels, keys)

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        label = decode_index_png(data, source.label, ("L", "P"), self.max_pixels)
        if source.label.startswith(self._path(_SHIFTED) + "/"):
            return np.where(label < _NUM_CLASSES, label + np.uint8(1), np.uint8(IGNORE))
        return label


def _by_number(files: dict[str, str]) -> dict[str, str]:
    """Renames `img-000001` and `00000001` to `1`, so that images and labels meet."""
    numbered = {}
    for name, path in files.items():
        match = re.fullmatch(r"(?:img-)?0*(\d+)", name)
        number = match[1] if match else name
        numbered[name if number in numbered else number] = path
    return numbered


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
