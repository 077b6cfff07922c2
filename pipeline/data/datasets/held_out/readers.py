"""Where the files of the held-out sets lie, and how their labels are stored.

    voc2012             JPEGImages, SegmentationClass (palette), ImageSets/Segmentation/val.txt
    pascal-context-60   JPEGImages, SegmentationClassContext (ids 0..59),
                        ImageSets/SegmentationContext/val.txt
    camvid-11           test, testannot (ids 0..10, 11 void): the split with 11 classes
    wilddash-19         wd_val_01/<name>_100000.png with <name>_100000_labelIds.png (version 1)
    kitti-19            training/image_2, training/semantic (Cityscapes' label ids)
    scannet-20          scannet_frames_25k/<scene>/{color,label}, scannetv2_val.txt (NYU-40 ids)

PASCAL Context's own labels are MATLAB files of 459 classes; the PNGs are what its users convert
them to. CamVid's own are coloured images of 32 classes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.data.datasets.base import has_folders
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import decode_image, resize_image
from pipeline.data.pixels.official import decode_index_png
from pipeline.errors import UserError
from pipeline.storage.base import Storage


@dataclass(frozen=True)
class HeldOutLayout:
    """The files of one held-out set."""

    name: str
    num_published: int
    """Images that MSeg scores."""
    images: tuple[str, str]
    """The images' folder, and what their names end in."""
    labels: tuple[str, str]
    """The labels' folder, and what their names end in."""
    image_list: str = ""
    """The file that names the images to score; without one, every labelled image is scored."""
    scene_list: str = ""
    """The file that names the scenes to score, for a set of videos."""

    def __str__(self) -> str:
        files = [f"{folder} with *{suffix}" for folder, suffix in (self.images, self.labels)]
        return " and ".join((*files, *filter(None, (self.image_list, self.scene_list))))


_VOC_IMAGES, _VOC_LIST = ("JPEGImages", ".jpg"), "ImageSets/Segmentation/val.txt"
_CONTEXT_LIST = "ImageSets/SegmentationContext/val.txt"
_FRAMES = "scannet_frames_25k"

HELD_OUT_LAYOUTS = {
    row.name: row
    for row in (
        HeldOutLayout("voc2012", 1449, _VOC_IMAGES, ("SegmentationClass", ".png"), _VOC_LIST),
        HeldOutLayout(
            "pascal-context-60",
            5105,
            _VOC_IMAGES,
            ("SegmentationClassContext", ".png"),
            _CONTEXT_LIST,
        ),
        HeldOutLayout("camvid-11", 233, ("test", ".png"), ("testannot", ".png")),
        HeldOutLayout("wilddash-19", 70, ("wd_val_01", ".png"), ("wd_val_01", "_labelIds.png")),
        HeldOutLayout("kitti-19", 200, ("training/image_2", ".png"), ("training/semantic", ".png")),
        HeldOutLayout(
            "scannet-20", 5436, (_FRAMES, ".jpg"), (_FRAMES, ".png"), scene_list="scannetv2_val.txt"
        ),
    )
}
"""The six sets by name, in the order of MSeg's table."""


@dataclass(frozen=True)
class HeldOutSource:
    """One image with its label, as paths in the root."""

    image: str
    label: str


class HeldOutReader:
    """Reads one held-out set."""

    def __init__(self, layout: HeldOutLayout, root: Storage, base: str = "") -> None:
        self.layout, self.root, self.base = layout, root, base

    def is_there(self) -> bool:
        """Whether the folder looks like this set's."""
        return has_folders(self.root, self.base, self.layout.images[0], self.layout.labels[0])

    def sources(self) -> tuple[HeldOutSource, ...]:
        """The images that are scored, in the order of their names.

        Raises:
            UserError: A list is missing.
        """
        layout = self.layout
        if layout.image_list:
            (images, jpg), (labels, png) = layout.images, layout.labels
            return tuple(
                HeldOutSource(self._path(images, name + jpg), self._path(labels, name + png))
                for name in sorted(self._listed(layout.image_list))
            )
        by_image, by_label = self._stems(*layout.images), self._stems(*layout.labels)
        if layout.scene_list:
            scenes = set(self._listed(layout.scene_list))
            by_image = _frames(by_image, "color", scenes)
            by_label = _frames(by_label, "label", scenes)
        names = sorted(by_image.keys() & by_label.keys())
        return tuple(HeldOutSource(by_image[name], by_label[name]) for name in names)

    def read(self, source: HeldOutSource) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image and its label.

        Returns:
            image: (H, W, 3) uint8 RGB, brought to the label's size where that differs in scale.
            label: (H, W) uint8, stored ids.

        Raises:
            BadSample: A file is missing or damaged, or the shapes do not fit.
        """
        try:
            pixels = decode_image(self.root.read(source.image))
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
                f"roots.{self.layout.name}={self.root.uri}: must hold {path}, the list of what is "
                "scored"
            ) from None


def _frames(paths: Mapping[str, str], kind: str, scenes: set[str]) -> dict[str, str]:
    """`scene0000_00/color/000000` -> path, as `scene0000_00/000000`, of some scenes."""
    found = {}
    for name, path in paths.items():
        match = re.fullmatch(rf"([^/]+)/{kind}/(.+)", name)
        if match and match[1] in scenes:
            found[f"{match[1]}/{match[2]}"] = path
    return found
