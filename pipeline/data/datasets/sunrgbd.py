"""SUN RGB-D by its 37 classes: the official download and two re-organised ones.

`sunrgbd_layouts` draws the folders. All label values are 0 for unlabelled and 1..37, may also be
255, and are 0..36 with 255 for unlabelled in MSeg's `semseg-label37`. The test split serves for
validation. Both splits number their images from 1.
"""

from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import Listing, Reader, Source, Split, has_folders, pair, safe_key
from pipeline.data.datasets.matlab import LabelMats
from pipeline.data.datasets.sunrgbd_layouts import (
    by_number,
    official_listing,
    over_both_splits,
    toolbox_folder,
)
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy import IGNORE, native_table
from pipeline.storage.archives.packed import Packing, local_copy
from pipeline.storage.base import Storage

_FOLDERS: dict[Split, str] = {"train": "train", "val": "test"}
_COARSE = 13
_SHIFTED = "semseg-label37"
_LABELS = ("label37", "label38", _SHIFTED)
_NUMBERED_LABELS = ("sunrgbd_train_test_labels", "sunrgbd_test_train_labels")


class SUNRGBD(Reader):
    """37 classes of rooms."""

    name = "sunrgbd"
    layout = (
        "SUNRGBD and SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat (official), or image/{train,test} "
        "and label37/{train,test} (or label38, or semseg-label37), or "
        "SUNRGBD-{train,test}_images and sunrgbd_train_test_labels"
    )
    inner_folders: ClassVar = (
        "image",
        *_LABELS,
        "SUNRGBD",
        "SUNRGBDtoolbox",
        "SUNRGBD-train_images",
        "SUNRGBD-test_images",
        *_NUMBERED_LABELS,
    )
    packings: ClassVar = (
        Packing("SUNRGBD.zip", "SUNRGBD"),
        Packing("SUNRGBDtoolbox.zip", "SUNRGBDtoolbox"),
        Packing("SUNRGBD-train_images.t*gz", "SUNRGBD-train_images"),
        Packing("SUNRGBD-test_images.t*gz", "SUNRGBD-test_images"),
        *(Packing(f"{folder}.t*gz", folder) for folder in _NUMBERED_LABELS),
        Packing("sun_rgbd.t*gz", "label37", whole=True),
    )
    published: ClassVar = {"train": 5_285, "val": 5_050}

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        pairs = [("image", folder) for folder in _LABELS] + [(name,) for name in _NUMBERED_LABELS]
        if any(has_folders(root, base, *folders) for folders in pairs):
            return True
        return has_folders(root, base, "SUNRGBD") and toolbox_folder(root, base) is not None

    def _listing(self, split: Split) -> Listing:
        if (toolbox := toolbox_folder(self.root, self.base)) is not None:
            files = self._files("SUNRGBD", ".jpg", also=("",))
            images = {n.removeprefix("SUNRGBD/"): path for n, path in files.items()}
            images = {n: path for n, path in images.items() if n.split("/")[-2:-1] == ["image"]}
            return official_listing(self.root, self.base, toolbox, split, images)
        folder = _FOLDERS[split]
        images = by_number(self._files(f"image/{folder}", ".jpg"))
        labels: dict[str, str] = {}
        for candidate in _LABELS:
            labels = labels or by_number(self._files(f"{candidate}/{folder}", ".png", role="label"))
        if not images and not labels:
            images = by_number(self._files(f"SUNRGBD-{folder}_images", ".jpg"))
            for candidate in _NUMBERED_LABELS:
                labels = labels or by_number(self._files(candidate, ".png", role="label"))
            images, labels = over_both_splits(split, images, labels)
        return pair(images, labels, lambda n: safe_key(split, PurePosixPath(images[n]).stem))

    def remarks(self, native_pixels: np.ndarray) -> list[str]:
        """Labels by 13 classes, as the same packages have them, with other meanings of the ids."""
        ids = native_pixels[1 : len(native_table(self.name))]
        if not ids[:_COARSE].all() or ids[_COARSE:].any():
            return []
        return [
            f"the labels hold all of 1 to {_COARSE} and nothing above: they look like those of "
            f"{_COARSE} classes, and the ids of 37 classes are read: give the labels of 37 classes"
        ]

    def native_label(self, source: Source) -> np.ndarray:
        """Reads a label; see `Reader.native_label`."""
        if "index" not in source.extra:
            return super().native_label(source)
        try:
            label = self._official.read(source.extra["index"])
            return self._known(label, f"label {source.extra['index'] + 1}")
        except BadSample as error:
            raise BadSample(f"{source.label}: {error}") from error

    @cached_property
    def _official(self) -> LabelMats:
        toolbox = toolbox_folder(self.root, self.base)
        path = local_copy(self.root, f"{toolbox}/Metadata/SUNRGBD2Dseg.mat")
        return LabelMats(path, "SUNRGBD2Dseg", "seglabel")

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        label = super()._decode(data, source)
        if source.label.startswith(self._path(_SHIFTED) + "/"):
            return np.where(label == IGNORE, label, np.minimum(label, IGNORE - 2) + np.uint8(1))
        return label
