"""Where the files of the suite's sets lie, as downloaded and as prepared; how labels are stored.

Prepared labels hold class numbers, 8-bit PNGs or 16-bit TIFFs and PNGs; official ones hold values
that a table numbers. ADE20K's full release writes a class as colours of `_seg.png`: red // 10 * 256
+ green. Its images and labels are shrunk to a short side of 512 where that is longer, as everybody
does who scores it; others also write the JPEG again, which is not done here. PASCAL Context comes
as MATLAB files `trainval/NAME.mat`, to be unpacked beside VOC 2010's `JPEGImages`; its validation
is a list of names that neither download holds.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.data.datasets.base import has_folders
from pipeline.data.datasets.matlab import read_label_array
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import decode_image
from pipeline.data.pixels.official import decode_16bit_ids, decode_index_png, decode_rgb_png
from pipeline.errors import UserError
from pipeline.storage.base import Storage

UNLABELLED = 65535
ADE_SHORT_PX = 512

Stored = Literal["numbers", "numbers16", "values", "ade colours", "label map"]
_CONTEXT_NAMES = Path(__file__).with_name("pascal-context-val.txt")
"""The 5104 images that everybody scores."""


@dataclass(frozen=True)
class SuiteLayout:
    """One way in which the files of a set lie."""

    images: tuple[str, str]
    """The images' folder, and what their names end in."""
    labels: tuple[str, str]
    """The labels' folder, and what their names end in."""
    stored: Stored
    """What a pixel of a label holds."""
    image_list: str = ""
    """The file that names the images; without one every labelled image is scored, but those of
    PASCAL Context's training."""

    def __str__(self) -> str:
        files = [f"{folder} with *{suffix}" for folder, suffix in (self.images, self.labels)]
        return " and ".join((*files, *filter(None, (self.image_list,))))


_VOC, _VOC_LIST = ("JPEGImages", ".jpg"), "ImageSets/Segmentation/val.txt"
_D2, _SETS = "annotations_detectron2", ("images/validation", ".jpg")


def _voc(labels: str) -> SuiteLayout:
    return SuiteLayout(_VOC, (labels, ".png"), "values", _VOC_LIST)


_CONTEXT = SuiteLayout(_VOC, ("trainval", ".mat"), "label map")
_VOC_VALUES = (_voc("SegmentationClassAug"), _voc("SegmentationClass"))
_STUFF = ("images/val2017", ".jpg")

LAYOUTS: dict[str, tuple[SuiteLayout, ...]] = {
    "a-150": (
        SuiteLayout(_SETS, ("annotations/validation", ".png"), "values"),
        SuiteLayout(_SETS, (f"{_D2}/validation", ".png"), "numbers"),
    ),
    "a-847": (
        SuiteLayout(
            ("images/ADE/validation", ".jpg"), ("images/ADE/validation", "_seg.png"), "ade colours"
        ),
        SuiteLayout(
            ("images_detectron2/validation", ".jpg"), (f"{_D2}/validation", ".tif"), "numbers16"
        ),
    ),
    "pc-59": (
        _CONTEXT,
        SuiteLayout(_VOC, (f"{_D2}/pc59_val", ".png"), "numbers"),
        SuiteLayout(_SETS, ("annotations_ctx59/validation", ".png"), "numbers"),
    ),
    "pc-459": (
        _CONTEXT,
        SuiteLayout(_VOC, (f"{_D2}/pc459_val", ".tif"), "numbers16"),
        SuiteLayout(_SETS, ("annotations_ctx459/validation", ".tif"), "numbers16"),
    ),
    "pas-20": (
        SuiteLayout(_VOC, (f"{_D2}/val", ".png"), "numbers"),
        SuiteLayout(_SETS, ("annotations_pascal20/validation", ".png"), "numbers"),
        *_VOC_VALUES,
    ),
    "pas-20b": (SuiteLayout(_VOC, (f"{_D2}_bg/val", ".png"), "numbers"), *_VOC_VALUES),
    "coco-stuff-171": (
        SuiteLayout(("val2017", ".jpg"), ("stuffthingmaps/val2017", ".png"), "values"),
        SuiteLayout(_STUFF, ("annotations/val2017", ".png"), "values"),
        SuiteLayout(_STUFF, (f"{_D2}/val2017", ".png"), "numbers"),
    ),
}
"""The sets by name, and how each may lie."""


@dataclass(frozen=True)
class SuiteSource:
    """One image with its label, as paths in the root."""

    image: str
    label: str


class SuiteReader:
    """Reads one set.

    Args:
        dataset: Its name.
        layout: How its files lie.
        root: The storage.
        base: The folder in it.
        values: Official value of each class, by number.
    """

    def __init__(
        self, dataset: str, layout: SuiteLayout, root: Storage, base: str, values: tuple[int, ...]
    ) -> None:
        self.dataset, self.layout, self.root, self.base = dataset, layout, root, base
        self._numbers = np.full(max(256, *values) + 2, UNLABELLED, np.uint16)
        self._numbers[list(values)] = np.arange(len(values))
        self._num_classes = len(values)

    def is_there(self) -> bool:
        """Whether the folder looks like this layout."""
        return has_folders(self.root, self.base, self.layout.images[0], self.layout.labels[0])

    def sources(self) -> tuple[SuiteSource, ...]:
        """The images that are scored, in the order of their names.

        Raises:
            UserError: The list is missing, or a label has no image.
        """
        (images, jpg), (labels, png) = self.layout.images, self.layout.labels
        if self.layout.image_list:
            names = sorted(self._listed(self.layout.image_list))
        else:
            folder = self._path(labels)
            names = sorted(
                entry.path.removeprefix(f"{folder}/").removesuffix(png)
                for entry in self.root.list(folder)
                if entry.path.endswith(png)
            )
        if self.layout.stored == "label map":
            validation = set(_CONTEXT_NAMES.read_text(encoding="ascii").split())
            names = [name for name in names if name in validation]
        if not names:
            raise UserError(
                f"roots.{self.dataset}={self.root.uri}: holds no label {self._path(labels)}/*{png}"
            )
        return tuple(
            SuiteSource(self._path(images, name + jpg), self._path(labels, name + png))
            for name in names
        )

    def read(self, source: SuiteSource) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image and its label.

        Returns:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) uint16, class numbers or UNLABELLED.

        Raises:
            BadSample: A file is missing or damaged, of another bit depth, holds a number that is
                no class, or the two differ in size.
        """
        try:
            image = decode_image(self.root.read(source.image))
            label = self._label(self.root.read(source.label), source.label)
        except FileNotFoundError as error:
            raise BadSample(str(error)) from None
        if image.shape[:2] != label.shape:
            raise BadSample(f"{source.image} is {image.shape[:2]} but its label {label.shape}")
        if self.layout.stored == "ade colours":
            image, label = _shrunk(image, label)
        return np.ascontiguousarray(image[:, :, ::-1]), label

    def _label(self, data: bytes, path: str) -> np.ndarray:
        stored = self.layout.stored
        if stored == "ade colours":
            colours = decode_rgb_png(data, path).astype(np.int64)
            return self._numbered(colours[:, :, 0] // 10 * 256 + colours[:, :, 1])
        if stored == "label map":
            # The process that reads MATLAB files takes a path, and the label may lie in a bucket.
            with tempfile.NamedTemporaryFile(suffix=".mat") as file:
                file.write(data)
                file.flush()
                values = read_label_array(Path(file.name), "LabelMap", path, np.uint16)
            return self._numbered(values.astype(np.int64))
        if stored == "values":
            return self._numbered(decode_index_png(data, path, ("L", "P")).astype(np.int64))
        if stored == "numbers16":
            label = decode_16bit_ids(data, path)
        else:
            label = decode_index_png(data, path, ("L", "P")).astype(np.uint16)
            label[label == 255] = UNLABELLED
        strange = label[(label >= self._num_classes) & (label != UNLABELLED)]
        # CAT-Seg's way of writing PASCAL Context's ignored pixels, though none is there.
        strange = strange[strange != self._num_classes] if stored == "numbers16" else strange
        if strange.size:
            raise BadSample(
                f"{path}: holds {int(strange[0])}: must be 0 to {self._num_classes - 1}, or "
                "unlabelled: it is of another set"
            )
        return np.where(label < self._num_classes, label, UNLABELLED).astype(np.uint16)

    def _numbered(self, values: np.ndarray) -> np.ndarray:
        return self._numbers[np.minimum(values, len(self._numbers) - 1)]

    def _path(self, *parts: str) -> str:
        return "/".join(part for part in (self.base, *parts) if part)

    def _listed(self, path: str) -> list[str]:
        try:
            return self.root.read(self._path(path)).decode().split()
        except FileNotFoundError:
            raise UserError(
                f"roots.{self.dataset}={self.root.uri}: must hold {path}, the list of what is "
                "scored"
            ) from None


def _shrunk(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brings the short side to 512 where it is longer."""
    height, width = label.shape
    short, long = min(height, width), max(height, width)
    if short <= ADE_SHORT_PX:
        return image, label
    other = round(long / short * ADE_SHORT_PX)
    size = (other, ADE_SHORT_PX) if width > height else (ADE_SHORT_PX, other)
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
    )
