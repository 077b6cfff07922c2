"""Results in the forms that other tools and benchmarks read: COCO panoptic, Cityscapes, ADE20K.

Made from the index files of a segmentation once all are there, into a folder of the format's name
beside them:

    coco-panoptic   NAME.png, R + 256 G + 256^2 B is a segment's id, and panoptic.json
                    (cocodataset.org, "Panoptic Segmentation"); one segment for each label, since
                    the network separates no instances
    cityscapes      NAME.png, 8 bits, the dataset's label ids (not train ids), 0 where there is none
    ade20k          NAME.png, 8 bits, 1 to 150, 0 where there is none

A label is the class whose name it is, in any spelling.
"""

import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipeline.data.pixels.official import decode_16bit_png, decode_index_png
from pipeline.data.taxonomy import native_table, spelling
from pipeline.errors import UserError
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

FormatName = Literal["none", "coco-panoptic", "cityscapes", "ade20k"]

_TABLES = {"coco-panoptic": "coco_panoptic", "cityscapes": "cityscapes", "ade20k": "ade20k"}
_SUFFIXES = re.compile(r"( other)?( merged| stuff)?$")
"""What COCO's names of stuff end with and no one would ask."""
LAST_THING = 90
"""The last of COCO's category ids that is one of a thing."""
_CITYSCAPES_SUFFIX = "_leftImg8bit"
NONE = 0
"""The id of pixels of no label, in all three."""


def class_ids(name: FormatName, labels: Sequence[str]) -> list[int] | None:
    """The format's id of each label; None where COCO lacks one, so that labels are counted.

    Raises:
        UserError: A label is no class of the format's dataset.
    """
    table = native_table(_TABLES[name])
    known: dict[str, int] = {}
    for entry in table:
        known.setdefault(spelling(entry.native_name), entry.native_id)
    if name == "coco-panoptic":
        for entry in table:
            known.setdefault(_SUFFIXES.sub("", spelling(entry.native_name)), entry.native_id)
    missing = [label for label in labels if spelling(label) not in known]
    if missing and name == "coco-panoptic":
        logger.info(
            "format=coco-panoptic: %r is no class of COCO: the categories are numbered as the "
            "labels are, from 1",
            missing[0],
        )
        return None
    if missing:
        raise UserError(
            f"format={name}: {missing[0]!r} is no class of {name}: ask for its classes alone "
            f"(such as {table[-1].native_name!r}), or set format to none or coco-panoptic"
        )
    return [known[spelling(label)] for label in labels]


def write_format(
    name: FormatName, out: Storage, photos: Sequence[str], labels: Sequence[str]
) -> str:
    """Writes the results of images in a format; returns the folder's name in `out`.

    Args:
        name: Which format.
        out: Where `PHOTO.png` lies for each of the images, and where the folder goes.
        photos: Names of the results.
        labels: What the values of the index files are positions of.
    """
    official = class_ids(name, labels)
    numbers = official or list(range(1, len(labels) + 1))
    table = np.full(65_536, NONE, np.uint16)
    table[: len(numbers)] = numbers
    images, annotations = [], []
    for image_id, (photo, target) in _numbered(name, photos):
        ids = table[_index(out, photo, len(labels))]
        if name == "coco-panoptic":
            pixels = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], 2).astype(np.uint8)
            height, width = ids.shape
            images.append({"id": image_id, "file_name": photo, "width": width, "height": height})
            segments = list(_segments(ids))
            annotations.append(
                {"image_id": image_id, "file_name": target, "segments_info": segments}
            )
        else:
            pixels = ids.astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        out.write(f"{name}/{target}", buffer.getvalue())
    if name == "coco-panoptic":
        content = {
            "images": images,
            "annotations": annotations,
            "categories": _categories(numbers, labels, is_coco=official is not None),
        }
        out.write(f"{name}/panoptic.json", json.dumps(content, ensure_ascii=False).encode())
    return name


def _numbered(name: FormatName, photos: Sequence[str]) -> Iterator[tuple[int, tuple[str, str]]]:
    """The id of each image, its name, and the name of its file in the format.

    An image of COCO has its id for a name; others are counted. Benchmarks want files in one folder.
    """
    last = [photo.rpartition("/")[2].removesuffix(_CITYSCAPES_SUFFIX) for photo in photos]
    if len(set(last)) < len(last):
        last = [photo.replace("/", "_") for photo in photos]
    are_ids = all(re.fullmatch(r"\d{1,12}", photo) for photo in last)
    for number, (photo, file) in enumerate(zip(photos, last, strict=True), 1):
        yield int(file) if are_ids else number, (photo, f"{file}.png")


def _index(out: Storage, photo: str, num_labels: int) -> np.ndarray:
    """The positions (H, W) of an index file."""
    path = f"{photo}.png"
    if num_labels <= 255:
        return decode_index_png(out.read(path), path, ("P",))
    return decode_16bit_png(out.read(path), path)


def _segments(ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """What panoptic.json says of each segment of an image."""
    for number in np.unique(ids):
        if number == NONE:
            continue
        mask = ids == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "id": int(number),
            "category_id": int(number),
            "area": int(mask.sum()),
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "iscrowd": 0,
        }


def _categories(
    numbers: Sequence[int], labels: Sequence[str], is_coco: bool
) -> list[dict[str, Any]]:
    """The categories; of labels that are none of COCO's it is not known which are things."""
    names = dict(zip(reversed(numbers), reversed(labels), strict=True))
    return [
        {
            "id": n,
            "name": names[n],
            "supercategory": "",
            "isthing": int(is_coco and n <= LAST_THING),
        }
        for n in sorted(names)
    ]
