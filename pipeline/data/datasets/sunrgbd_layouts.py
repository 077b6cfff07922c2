"""Where SUN RGB-D's images and labels lie, in each of the forms in which it is given away.

Official: `SUNRGBD.zip` and `SUNRGBDtoolbox.zip`

    SUNRGBD/{kv1,kv2,realsense,xtion}/<source>/<scene>/image/*.jpg
    SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat           all labels; about 64 GB if loaded as a whole
    SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat            the image of each label
    SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat       the scenes of each split

ankurhanda/sunrgbd-meta-data: labels 1 to 5050 are those of the test images, the rest, in order,
those of the training images.

    SUNRGBD-{train,test}_images/img-%06d.jpg
    sunrgbd_train_test_labels/img-%06d.png

chrischoy/SUN_RGBD, and MSeg after it:

    image/{train,test}/img-%06d.jpg
    {label37,label38,semseg-label37}/{train,test}/%08d.png
"""

import posixpath
import re
from collections.abc import Mapping

from pipeline.data.datasets.base import LeftOut, Listing, Source, Split, safe_key
from pipeline.data.datasets.matlab import read_strings
from pipeline.errors import UserError
from pipeline.storage.archives.packed import local_copy
from pipeline.storage.base import Storage

NUM_TEST = 5_050
"""Test images, whose labels come first in the numbering over both splits."""

_TOOLBOX = ("SUNRGBDtoolbox", "SUNRGBDtoolbox/SUNRGBDtoolbox")
_LABELS = "Metadata/SUNRGBD2Dseg.mat"
_SPLIT = "traintestSUNRGBD/allsplit.mat"
_METADATA = (
    "{toolbox}/Metadata/SUNRGBDMeta.mat",
    "{base}/SUNRGBDMeta2DBB_v2.mat",
    "{base}/SUNRGBDMeta3DBB_v2.mat",
    "{toolbox}/Metadata/SUNRGBDMeta2DBB_v2.mat",
    "{toolbox}/Metadata/SUNRGBDMeta3DBB_v2.mat",
)
_SPLIT_LISTS: dict[Split, str] = {"train": "alltrain", "val": "alltest"}
_MARKER = "SUNRGBD/"


def toolbox_folder(root: Storage, base: str) -> str | None:
    """The toolbox's folder, if the official labels are there."""
    paths = (f"{base}/{folder}".strip("/") for folder in _TOOLBOX)
    return next((path for path in paths if root.exists(f"{path}/{_LABELS}")), None)


def official_listing(
    root: Storage, base: str, toolbox: str, split: Split, images: Mapping[str, str]
) -> Listing:
    """Pairs the images of a split with the official labels' positions.

    The images are path within `SUNRGBD/` without its extension -> path in the root; `base` is the
    folder that holds `SUNRGBD/`.

    Raises:
        UserError: A .mat file is missing or damaged, or they do not belong together.
    """
    labels = f"{toolbox}/{_LABELS}"
    scenes = _scenes_of_split(root, f"{toolbox}/{_SPLIT}", split)
    listed = _labelled_images(root, base, toolbox)
    sources, left_out, seen = [], [], set()
    for index, path in enumerate(listed):
        scene = posixpath.dirname(posixpath.dirname(path))
        if scene not in scenes:
            continue
        seen.add(scene)
        name = path.rpartition(".")[0]
        if name not in images:
            left_out.append(LeftOut(f"{labels}: label {index + 1}", f"no image {path}"))
            continue
        key = safe_key(split, *name.split("/"))
        sources.append(Source(key, images[name], labels, {"index": index}))
    left_out += [
        LeftOut(images[name], "no label")
        for name in images
        if (scene := posixpath.dirname(posixpath.dirname(name))) in scenes and scene not in seen
    ]
    return Listing.of(sources, left_out)


def by_number(files: Mapping[str, str]) -> dict[str, str]:
    """Renames `img-000001` and `00000001` to `1`, so that images and labels meet."""
    numbered: dict[str, str] = {}
    for name, path in files.items():
        match = re.fullmatch(r"(?:img\w*-)?0*(\d+)", name)
        number = match[1] if match else name
        numbered[name if number in numbered else number] = path
    return numbered


def over_both_splits(
    split: Split, images: dict[str, str], labels: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Brings images and labels of ankurhanda's form to one numbering, that of the labels.

    Both are number -> path: images of the one split, labels of both.

    Returns:
        The images, and the labels of this split alone, by the labels' numbers.
    """
    first, last = {"val": (1, NUM_TEST), "train": (NUM_TEST + 1, 1 << 31)}[split]
    own = {n: path for n, path in labels.items() if n.isdigit() and first <= int(n) <= last}
    if split == "train":
        # As given away, training images count from 1; some renumber them as the labels are.
        moved = {str(int(n) + NUM_TEST): path for n, path in images.items() if n.isdigit()}
        if len(moved.keys() & own.keys()) >= len(images.keys() & own.keys()):
            images = moved | {n: path for n, path in images.items() if not n.isdigit()}
    return images, own


def _scenes_of_split(root: Storage, path: str, split: Split) -> set[str]:
    try:
        local = local_copy(root, path)
    except FileNotFoundError as error:
        raise UserError(
            f"{root.uri}/{path}: must be there beside {_LABELS}: unpack SUNRGBDtoolbox.zip"
        ) from error
    scenes = read_strings(local, _SPLIT_LISTS[split])
    if not scenes:
        raise UserError(f"{root.uri}/{path}: must hold the list {_SPLIT_LISTS[split]}")
    return {_within(scene) for scene in scenes}


def _labelled_images(root: Storage, base: str, toolbox: str) -> list[str]:
    """The image of each label, within `SUNRGBD/`: `kv1/<source>/<scene>/image/<name>.jpg`."""
    candidates = [path.format(base=base, toolbox=toolbox).strip("/") for path in _METADATA]
    for path in filter(root.exists, candidates):
        if images := read_strings(local_copy(root, path), "SUNRGBDMeta", "rgbpath"):
            return [_within(image) for image in images]
    raise UserError(
        f"{root.uri}/{candidates[0]}: must be there, and say in SUNRGBDMeta.rgbpath which image "
        f"each label of {_LABELS} belongs to: unpack SUNRGBDtoolbox.zip"
    )


def _within(path: str) -> str:
    """Cuts what the authors' paths begin with: `/n/fs/sun3d/data/SUNRGBD/kv1/..` -> `kv1/..`."""
    tail = path.strip().partition(_MARKER)[2] or path
    return "/".join(part for part in tail.split("/") if part not in ("", ".", ".."))
