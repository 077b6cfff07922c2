"""Tiny few-shot benchmarks in HSNet's layout, with its lists."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_jpg(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """A JPEG of noise; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def save_png(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    """An 8-bit PNG of ids, (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    if palette:
        image.putpalette([value for i in range(256) for value in (i, 255 - i, i)])
    image.save(path)


def write_voc(root: Path, size: tuple[int, int] = (40, 30)) -> None:
    """Two pictures for a class of each fold; those of the bus (5) show a car (6) as well.

    Also the folder `splits` with HSNet's training lists.
    """
    width, height = size
    lists = root / "splits/pascal/trn"
    lists.mkdir(parents=True)
    for fold, classes in enumerate(((0,), (5, 6), (10,), (15,))):
        lines = []
        for number in (2 * fold, 2 * fold + 1):
            name = f"2007_{number:06d}"
            save_jpg(root / f"VOC2012/JPEGImages/{name}.jpg", size, number)
            ids = np.zeros((height, width))
            ids[: height // 2, : width // 2] = classes[0] + 1
            ids[height // 2 :, : width // 2] = classes[-1] + 1
            ids[height // 2] = 255
            save_png(root / f"VOC2012/SegmentationClassAug/{name}.png", ids, palette=True)
            lines += [f"{name}__{class_id + 1:02d}" for class_id in classes]
        (lists / f"fold{fold}.txt").write_text("\n".join(lines) + "\n")


def write_fss(root: Path, classes: tuple[str, ...], per_class: int) -> None:
    """Training classes, one test class beside them, and `splits/fss/trn.txt`."""
    for name in (*classes, "abe's_flyingfish"):
        for number in range(1, per_class + 1):
            save_jpg(root / f"FSS-1000/{name}/{number}.jpg", (32, 32), number)
            ids = np.zeros((32, 32))
            ids[8:24, 8:24] = 255
            save_png(root / f"FSS-1000/{name}/{number}.png", ids)
    (root / "splits/fss").mkdir(parents=True)
    (root / "splits/fss/trn.txt").write_text("\n".join(classes) + "\n")
