"""Writes the mini-seven in the official on-disk layout and label encoding of each dataset.

One writer a dataset, the counterpart of its reader: palette PNGs where the original has palettes,
polygon JSON where it has polygons, RGB segment ids with their JSON where it has those.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.taxonomy import native_table
from pipeline.demo.world import WORLDS, Region, Scene, rasterise, render_scene

_SPLITS = {"train": "training", "val": "validation"}
_VOID_ID = dict.fromkeys(WORLDS, 0) | {"bdd100k": 255, "idd": 35, "mapillary": 65}
"""What each dataset stores where nothing is labelled."""


def write_mini_seven(
    out: Path,
    vectors: Mapping[str, np.ndarray],
    seed: int,
    num_train: int,
    num_val: int,
    datasets: Iterable[str] = tuple(WORLDS),
) -> dict[str, Path]:
    """Renders the scenes and writes seven dataset roots below `out`.

    Args:
        out: Folder to write into; one sub-folder a dataset.
        vectors: Text vector (C,) float32 of each universal class that the worlds show.
        seed: Changes every scene.
        num_train: Training scenes of each dataset.
        num_val: Validation scenes of each dataset.
        datasets: Which of the seven.

    Returns:
        The root folder of each dataset, as `open_reader` takes it.
    """
    roots = {dataset: out / dataset for dataset in datasets}
    for dataset, root in roots.items():
        for split, count in (("train", num_train), ("val", num_val)):
            scenes = (render_scene(dataset, split, i, vectors, seed) for i in range(count))
            _WRITERS[dataset](root, split, scenes)
    return roots


def native_ids(dataset: str, scene: Scene) -> np.ndarray:
    """The label image of a scene in a dataset's own ids: (H, W) uint8."""
    height, width = scene.image.shape[:2]
    ids = np.full((height, width), _VOID_ID[dataset], np.uint8)
    for region in scene.regions:
        ids[rasterise(region.polygon, width, height)] = _native_class(dataset, region)[0]
    return ids


def _native_class(dataset: str, region: Region) -> tuple[int, str]:
    """The dataset's own id and name of a region's class; the name is empty where it has none."""
    if region.universal_name is None:
        return _VOID_ID[dataset], ""
    for entry in native_table(dataset, overridden=True):
        if entry.universal_name == region.universal_name:
            return entry.native_id, entry.native_name
    raise KeyError(f"{dataset} has no class that maps to {region.universal_name}")


def _write_ade20k(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    folder = _SPLITS[split]
    for number, scene in enumerate(scenes, 1):
        stem = f"ADE_{split}_{number:08d}"
        _save(scene.image, root / "images" / folder / f"{stem}.jpg")
        _save(native_ids("ade20k", scene), root / "annotations" / folder / f"{stem}.png")
    names = [f"{e.native_id}\t0.0\t0\t0\t{e.native_name}" for e in native_table("ade20k")]
    info = ["Idx\tRatio\tTrain\tVal\tName", *(n for n in names if not n.startswith("0\t"))]
    (root / "objectInfo150.txt").write_text("\n".join(info) + "\n")


def _write_bdd100k(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    labels = root / "labels" / "sem_seg"
    for number, scene in enumerate(scenes):
        stem = f"{_hash(f'bdd/{split}/{number}', 8)}-{_hash(f'{split}/{number}', 8)}"
        _save(scene.image, root / "images" / "10k" / split / f"{stem}.jpg")
        ids = native_ids("bdd100k", scene)
        _save(ids, labels / "masks" / split / f"{stem}.png")
        _save(ids, labels / "colormaps" / split / f"{stem}.png", has_palette=True)


def _write_cityscapes(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    city = {"train": "aachen", "val": "frankfurt"}[split]
    for number, scene in enumerate(scenes):
        stem = f"{city}_{number:06d}_000019"
        image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
        _save(scene.image, image)
        label = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
        _save(native_ids("cityscapes", scene), label)


def _write_coco_panoptic(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    images, annotations = [], []
    first = {"train": 9, "val": 139}[split]
    for number, scene in enumerate(scenes):
        stem = f"{first + 7 * number:012d}"
        height, width = scene.image.shape[:2]
        segment = np.zeros((height, width), np.int64)
        categories = {}
        for count, region in enumerate(scene.regions):
            # Segment ids are colours in the original: large and without order.
            segment_id = 3_001 + 70_001 * count if region.universal_name else 0
            segment[rasterise(region.polygon, width, height)] = segment_id
            if segment_id:
                categories[segment_id] = _native_class("coco_panoptic", region)[0]
        colours = np.stack([segment & 255, segment >> 8 & 255, segment >> 16], -1)
        _save(scene.image, root / f"{split}2017" / f"{stem}.jpg")
        png = root / "annotations" / f"panoptic_{split}2017" / f"{stem}.png"
        _save(colours.astype(np.uint8), png)
        infos = [
            _segment_info(segment == key, key, category)
            for key, category in categories.items()
            if (segment == key).any()
        ]
        size = {"height": height, "width": width}
        images.append({"id": int(stem), "file_name": f"{stem}.jpg", **size})
        annotation = {"image_id": int(stem), "file_name": f"{stem}.png", "segments_info": infos}
        annotations.append(annotation)
    names = [{"id": e.native_id, "name": e.native_name} for e in native_table("coco_panoptic")]
    document = {"images": images, "annotations": annotations, "categories": names}
    (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(document))


def _segment_info(mask: np.ndarray, segment_id: int, category: int) -> dict[str, object]:
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    return {
        "id": segment_id,
        "category_id": category,
        "area": int(mask.sum()),
        "bbox": box,
        "iscrowd": 0,
    }


def _write_idd(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    for number, scene in enumerate(scenes):
        drive, stem = f"{number // 10 + 1}", f"{number * 15:06d}"
        height, width = scene.image.shape[:2]
        image = root / "leftImg8bit" / split / drive / f"{stem}_leftImg8bit.png"
        _save(scene.image, image)
        objects = [
            {
                "date": "01-Jan-2020 00:00:00",
                "deleted": 0,
                "draw": True,
                "id": count,
                "label": _native_class("idd", region)[1] or "unlabeled",
                "polygon": [[float(x), float(y)] for x, y in region.polygon],
                "user": "mini-seven",
                "verified": 0,
            }
            for count, region in enumerate(scene.regions)
        ]
        document = {"imgHeight": height, "imgWidth": width, "objects": objects}
        path = root / "gtFine" / split / drive / f"{stem}_gtFine_polygons.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))


def _write_mapillary(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    folder = root / _SPLITS[split]
    for number, scene in enumerate(scenes):
        # Keys of the original have 22 characters and may begin with a dash or an underscore.
        key = "-_aB"[number % 4] + _hash(f"mapillary/{split}/{number}", 21)
        _save(scene.image, folder / "images" / f"{key}.jpg")
        _save(native_ids("mapillary", scene), folder / "labels" / f"{key}.png", has_palette=True)
    labels = [
        {"name": f"object--{e.native_name.lower()}", "readable": e.native_name}
        for e in native_table("mapillary")
    ]
    (root / "config.json").write_text(json.dumps({"version": 1.2, "labels": labels}))


def _write_sunrgbd(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    folder = {"train": "train", "val": "test"}[split]
    for number, scene in enumerate(scenes, 1):
        _save(scene.image, root / "image" / folder / f"img-{number:06d}.jpg")
        _save(native_ids("sunrgbd", scene), root / "label37" / folder / f"{number:08d}.png")


_WRITERS: dict[str, Callable[[Path, str, Iterable[Scene]], None]] = {
    "ade20k": _write_ade20k,
    "bdd100k": _write_bdd100k,
    "cityscapes": _write_cityscapes,
    "coco_panoptic": _write_coco_panoptic,
    "idd": _write_idd,
    "mapillary": _write_mapillary,
    "sunrgbd": _write_sunrgbd,
}


def _save(pixels: np.ndarray, path: Path, has_palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if has_palette:
        image.putpalette(np.random.Generator(np.random.PCG64(1)).bytes(768))
    # No chroma subsampling: the paint of a class is fine colour texture.
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    image.save(path, **options)


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
