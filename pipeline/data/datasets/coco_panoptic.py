"""COCO Panoptic 2017: `{train,val}2017.zip` and `panoptic_annotations_trainval2017.zip`.

    {train,val}2017/%012d.jpg
    annotations/panoptic_{train,val}2017.json
    annotations/panoptic_{train,val}2017/%012d.png    from the zips within the annotations' zip

Those inner zips may stay packed, in `annotations/` or in the zip that holds them.

A pixel's colour is a segment id, R + 256 G + 65536 B, 0 for none; the JSON gives each segment its
category. The native id of a pixel is that category id, 1..200 with gaps. Crowd segments count.
"""

import json
from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np

from pipeline.data.datasets.base import Listing, Masks, Reader, Source, Split, pair, safe_key
from pipeline.data.pixels.checks import BadSample, reason_of
from pipeline.data.pixels.official import decode_rgb_png
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.storage.archives.packed import Packing
from pipeline.storage.base import Storage

_MAX_SEGMENT = (1 << 24) - 1
"""The largest number that the three bytes of a colour hold."""


class COCOPanoptic(Reader):
    """133 classes of things and stuff in everyday photos."""

    name = "coco_panoptic"
    layout = (
        "{train,val}2017, annotations/panoptic_{train,val}2017.json and the unzipped "
        "annotations/panoptic_{train,val}2017"
    )
    inner_folders: ClassVar = ("annotations", "train2017", "val2017")
    packings: ClassVar = (
        Packing("train2017.zip", "train2017"),
        Packing("val2017.zip", "val2017"),
        Packing("panoptic_annotations_trainval2017.zip", "annotations/panoptic_train2017.json"),
        *(
            Packing(f"{folder}panoptic_{split}2017.zip", f"annotations/panoptic_{split}2017")
            for folder in ("annotations/", "")
            for split in ("train", "val")
        ),
    )
    published: ClassVar = {"train": 118_287, "val": 5_000}
    needs = ("annotations",)

    @classmethod
    def recognises(cls, root: Storage, base: str = "") -> bool:
        """Whether a folder looks like this dataset's; costs a few requests."""
        index = f"{base}/annotations/panoptic_{{}}2017.json".strip("/")
        return super().recognises(root, base) and any(
            root.exists(index.format(split)) for split in ("val", "train")
        )

    def _listing(self, split: Split) -> Listing:
        images = self._files(f"{split}2017", ".jpg")
        labels = self._files(f"annotations/panoptic_{split}2017", ".png", role="label")
        if not images and not labels:
            return Listing((), ())
        return pair(images, labels, safe_key, self._segments(split))

    def _segments(self, split: Split) -> dict[str, dict[str, Any]]:
        """Reads the JSON: name of the image -> its segments, as `Source.extra` holds them.

        What is wrong with the segments of one image is kept as its `problem`.
        """
        path = self._path(f"annotations/panoptic_{split}2017.json")
        try:
            index = json.loads(self.root.read(path), object_hook=_only_needed)
            found: dict[str, dict[str, Any]] = {}
            unnamed = 0
            for position, image in enumerate(index["annotations"]):
                where = f"annotations[{position}]"
                if not isinstance(image, dict) or not isinstance(image["file_name"], str):
                    unnamed += 1  # Nobody knows whose it is: its PNG is told to have no entry.
                    continue
                name = image["file_name"].removesuffix(".png")
                segments = _segments_of(image.get("segments_info"), where)
                if found.get(name, segments) != segments:
                    segments = _problem(f"{where} and another are both of it, and differ")
                found[name] = segments
            if unnamed and not found:
                raise ValueError("no entry of annotations has a file_name and segments_info")
            return found
        except FileNotFoundError as error:
            raise UserError(
                f"{self.root.uri}/{path}: must be there beside the panoptic PNGs: unzip "
                "panoptic_annotations_trainval2017.zip"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.root.uri}/{path}: must be the JSON of COCO's panoptic annotations "
                f"({type(error).__name__}: {reason_of(error)}): unzip it again"
            ) from error

    def segment_masks(self, source: Source, segments: Collection[int]) -> Masks:
        """Pixels by panoptic segment id; see `Reader.segment_masks`."""
        pixels = self._segment_ids(self._read_segments(source.label), source)
        return {number: pixels == number for number in segments}

    def _segment_ids(self, data: bytes, source: Source) -> np.ndarray:
        rgb = decode_rgb_png(data, source.label).astype(np.uint32)
        return rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        if problem := source.extra.get("problem"):
            raise BadSample(f"{source.label}: the JSON's {problem}")
        pixels = self._segment_ids(data, source)
        # Segment 0, "nothing here", first: the ids stay sorted and every list has an entry.
        segment_ids = np.array([0, *source.extra["segment_ids"]], dtype=np.uint32)
        categories = np.array([IGNORE, *source.extra["category_ids"]])
        order = np.argsort(segment_ids, kind="stable")
        segment_ids, categories = segment_ids[order], categories[order]
        position = np.searchsorted(segment_ids, pixels)
        position[position == len(segment_ids)] = 0
        listed = segment_ids[position] == pixels
        if not listed.all():
            raise BadSample(
                f"{source.label}: {np.count_nonzero(~listed)} pixels belong to segments that the "
                "JSON does not list for it"
            )
        if (categories < 0).any() or (categories[1:] >= IGNORE).any():
            raise BadSample(f"{source.label}: the JSON has categories that are not COCO's")
        return categories.astype(np.uint8)[position]


def _problem(text: str) -> dict[str, Any]:
    return {"problem": text}


def _segments_of(infos: Any, where: str) -> dict[str, Any]:
    """The segments of one image, or what is wrong with them."""
    if not isinstance(infos, list):
        return _problem(f"{where} has no list segments_info")
    limits = {"id": _MAX_SEGMENT, "category_id": IGNORE - 1}
    seen: set[int] = set()
    for position, info in enumerate(infos):
        place = f"{where}.segments_info[{position}]"
        if not isinstance(info, tuple):
            return _problem(f"{place} has no category_id")
        for value, (key, most) in zip(info, limits.items(), strict=True):
            if value is None:
                return _problem(f"{place} has no {key}")
            if type(value) is not int or not 1 <= value <= most:
                shown = repr(value)[:40]
                return _problem(f"{place}.{key}={shown}: not COCO's: must be 1 to {most}")
        if info[0] in seen:
            return _problem(f"{place}.id={info[0]}: comes twice in one image")
        seen.add(info[0])
    return {
        "segment_ids": [segment_id for segment_id, _ in infos],
        "category_ids": [category for _, category in infos],
    }


def _only_needed(item: dict[str, Any]) -> Any:
    """Keeps of each JSON object what a label needs: the train file is 370 MB of text."""
    if "category_id" in item:
        return item.get("id"), item["category_id"]
    if "segments_info" in item:
        return {name: item.get(name) for name in ("file_name", "segments_info")}
    return item if "annotations" in item else None
