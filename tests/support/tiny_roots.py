"""Dataset roots of a few tiny images in the official layouts, written by hand."""

import io
from pathlib import Path

import cv2
import numpy as np

ROAD, SKY, CAR, STATIC = 7, 23, 26, 4
"""Raw Cityscapes ids; `static` is none of the 19 classes."""


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 with large soft blobs, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, extension: str) -> bytes:
    """The bytes of an image file."""
    done, data = cv2.imencode(extension, image)
    assert done
    return data.tobytes()


def write(path: Path, data: bytes) -> None:
    """Writes a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pillow_bytes(image, **options) -> bytes:
    """What Pillow saves of an image."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def cityscapes_label(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W) uint8 raw ids: sky above road, a car, and a strip that is ignored."""
    label = np.full((height, width), ROAD, np.uint8)
    label[: height // 3] = SKY
    label[height // 2 :, seed % width : seed % width + 4] = CAR
    label[-2:] = STATIC
    return label


def cityscapes_files(split: str, city: str, frame: int) -> tuple[str, str]:
    """Paths of an image and its label below the root."""
    stem = f"{city}_{frame:06d}_000019"
    return (
        f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
        f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png",
    )


def write_cityscapes(
    root: Path, num_train: int = 5, num_val: int = 2, size: tuple[int, int] = (32, 64)
) -> dict[str, np.ndarray]:
    """Writes a root.

    Returns:
        The raw label by the path of its image.
    """
    labels = {}
    for split, city, count in (("train", "aachen", num_train), ("val", "ulm", num_val)):
        for frame in range(count):
            image, label = cityscapes_files(split, city, frame)
            labels[image] = cityscapes_label(*size, seed=frame)
            write(root / image, encode(noise(*size, seed=frame), ".png"))
            write(root / label, encode(labels[image], ".png"))
    return labels


def write_ade20k(root: Path, num_train: int = 3, num_val: int = 1) -> None:
    """Writes a root: wall (1) and floor (4), and a corner of `other` (0)."""
    for split, short, count in (("training", "train", num_train), ("validation", "val", num_val)):
        for number in range(1, count + 1):
            label = np.ones((24, 30 + number), np.uint8)
            label[16:] = 4
            label[:3, :3] = 0
            name = f"ADE_{short}_{number:08d}"
            write(root / f"images/{split}/{name}.jpg", encode(noise(*label.shape, number), ".jpg"))
            write(root / f"annotations/{split}/{name}.png", encode(label, ".png"))
