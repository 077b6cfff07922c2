"""Where the files of the held-out sets lie, and how their labels are stored.

    voc2012             JPEGImages, SegmentationClass (palette), ImageSets/Segmentation/val.txt
    pascal-context-60   JPEGImages, SegmentationClassContext (ids 0..59),
                        ImageSets/SegmentationContext/val.txt
    camvid-11           test, testannot (ids 0..10, 11 void): the split with 11 classes
    wilddash-19         wd_val_01/<name>_100000.png with <name>_100000_labelIds.png (version 1)
    kitti-19            training/image_2, training/semantic (Cityscapes' label ids)
    scannet-20          scannet_frames_25k/<scene>/{color,label}, scannetv2_val.txt (NYU-40 ids)

PASCAL Context's own labels are MATLAB files of 459 classes; the PNGs are what its users convert
them to. CamVid's own are coloured pictures of 32 classes.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import has_folders
from pipeline.data.pixels.encode import decode_image, resize_image
from pipeline.data.pixels.official import MAX_PIXELS, BadSample, decode_index_png
from pipeline.errors import UserError
from pipeline.storage.base import Storage


@dataclass(frozen=True)
class HeldOutSource:
    """One picture with its label, as paths in the root."""

    image: str
    label: str


class HeldOutReader(ABC):
    """Reads one held-out set."""

    name: ClassVar[str]
    layout: ClassVar[str]
    num_published: ClassVar[int]
    """Pictures that MSeg scores."""

    def __init__(self, root: Storage, base: str = "") -> None:
        self.root, self.base = root, base

    @classmethod
    @abstractmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""

    @abstractmethod
    def sources(self) -> tuple[HeldOutSource, ...]:
        """The pictures that are scored, in the order of their names.

        Raises:
            UserError: A list is missing.
        """

    def read(self, source: HeldOutSource) -> tuple[np.ndarray, np.ndarray]:
        """Reads a picture and its label.

        Returns:
            image: (H, W, 3) uint8 RGB, brought to the label's size where that differs in scale.
            label: (H, W) uint8, stored ids.

        Raises:
            BadSample: A file is missing or damaged, or the shapes do not fit.
        """
        try:
            pixels = decode_image(self.root.read(source.image), MAX_PIXELS).pixels
            label = decode_index_png(self.root.read(source.label), source.label, ("L", "P"))
        except FileNotFoundError as error:
            raise BadSample(str(error)) from None
        if pixels.shape[:2] != label.shape:
            ratio = pixels.shape[0] / label.shape[0], pixels.shape[1] / label.shape[1]
            if not 0.97 < ratio[0] / ratio[1] < 1.03 or min(ratio) < 1:
                raise BadSample(f"{source.image} is {pixels.shape[:2]} but its label {label.shape}")
            pixels = resize_image(pixels, (label.shape[0], label.shape[1]))
        return np.ascontiguousarray(pixels[:, :, ::-1]), label

    def _path(self, *parts: str) -> str:
        return "/".join(part for part in (self.base, *parts) if part)

    def _stems(self, folder: str, suffix: str) -> dict[str, str]:
        """Files below a folder with this suffix: path within it without the suffix -> path."""
        path = self._path(folder)
        return {
            entry.path.removeprefix(f"{path}/").removesuffix(suffix): entry.path
            for entry in self.root.list(path)
            if entry.path.endswith(suffix)
        }

    def _listed(self, path: str) -> list[str]:
        try:
            return self.root.read(self._path(path)).decode().split()
        except FileNotFoundError:
            raise UserError(
                f"roots.{self.name}={self.root.uri}: must hold {path}, the list of what is scored"
            ) from None


def _pair(images: Mapping[str, str], labels: Mapping[str, str]) -> tuple[HeldOutSource, ...]:
    names = sorted(images.keys() & labels.keys())
    return tuple(HeldOutSource(images[name], labels[name]) for name in names)


class VOC2012(HeldOutReader):
    """20 kinds of object and background; 255 is a border."""

    name = "voc2012"
    layout = "JPEGImages, SegmentationClass and ImageSets/Segmentation/val.txt"
    num_published = 1449
    _labels: ClassVar[str] = "SegmentationClass"
    _list: ClassVar[str] = "ImageSets/Segmentation/val.txt"

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""
        return has_folders(root, base, "JPEGImages", cls._labels)

    def sources(self) -> tuple[HeldOutSource, ...]:
        """Those of the list."""
        return tuple(
            HeldOutSource(
                self._path("JPEGImages", f"{name}.jpg"), self._path(self._labels, f"{name}.png")
            )
            for name in sorted(self._listed(self._list))
        )


class PASCALContext(VOC2012):
    """59 classes and background."""

    name = "pascal-context-60"
    layout = "JPEGImages, SegmentationClassContext and ImageSets/SegmentationContext/val.txt"
    num_published = 5105
    _labels = "SegmentationClassContext"
    _list = "ImageSets/SegmentationContext/val.txt"


class CamVid(HeldOutReader):
    """Eleven classes of streets."""

    name = "camvid-11"
    layout = "test and testannot"
    num_published = 233

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""
        return has_folders(root, base, "test", "testannot")

    def sources(self) -> tuple[HeldOutSource, ...]:
        """All of the test split."""
        return _pair(self._stems("test", ".png"), self._stems("testannot", ".png"))


class WildDash(HeldOutReader):
    """Streets in hard conditions, Cityscapes' classes."""

    name = "wilddash-19"
    layout = "wd_val_01 with *_labelIds.png"
    num_published = 70

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""
        return has_folders(root, base, "wd_val_01")

    def sources(self) -> tuple[HeldOutSource, ...]:
        """All that are labelled."""
        labels = self._stems("wd_val_01", "_labelIds.png")
        return _pair(self._stems("wd_val_01", ".png"), labels)


class KITTI(HeldOutReader):
    """Streets of Karlsruhe, Cityscapes' classes."""

    name = "kitti-19"
    layout = "training/image_2 and training/semantic"
    num_published = 200

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""
        return has_folders(root, base, "training/image_2", "training/semantic")

    def sources(self) -> tuple[HeldOutSource, ...]:
        """All that are labelled: the test labels are not public."""
        images = self._stems("training/image_2", ".png")
        return _pair(images, self._stems("training/semantic", ".png"))


class ScanNet(HeldOutReader):
    """Frames of indoor videos, 20 classes."""

    name = "scannet-20"
    layout = "scannet_frames_25k and scannetv2_val.txt"
    num_published = 5436

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this set's."""
        return has_folders(root, base, "scannet_frames_25k")

    def sources(self) -> tuple[HeldOutSource, ...]:
        """The frames of the listed scenes."""
        scenes = set(self._listed("scannetv2_val.txt"))
        images = self._stems("scannet_frames_25k", ".jpg")
        labels = self._stems("scannet_frames_25k", ".png")
        return _pair(_frames(images, "color", scenes), _frames(labels, "label", scenes))


def _frames(paths: Mapping[str, str], kind: str, scenes: set[str]) -> dict[str, str]:
    """`scene0000_00/color/000000` -> path, as `scene0000_00/000000`, of some scenes."""
    found = {}
    for name, path in paths.items():
        match = re.fullmatch(rf"([^/]+)/{kind}/(.+)", name)
        if match and match[1] in scenes:
            found[f"{match[1]}/{match[2]}"] = path
    return found


HELD_OUT_READERS: dict[str, type[HeldOutReader]] = {
    cls.name: cls for cls in (VOC2012, PASCALContext, CamVid, WildDash, KITTI, ScanNet)
}
