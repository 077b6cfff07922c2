"""The loaders that the ingest benchmark compares ours with, used as their documentation shows."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.benchmarks.ingest_samples import BATCH

WORKERS = 2
CROP, LOW, HIGH = 480, 260, 1040
Transform = Callable[[bytes, bytes], tuple[np.ndarray, np.ndarray]]

_rng = np.random.default_rng()


def transform_cv2(jpeg: bytes, png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize the whole picture, pad, crop, flip."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    label = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    height, width = label.shape
    zoom = _rng.integers(LOW, HIGH + 1) / max(height, width)
    size = (round(width * zoom), round(height * zoom))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    below, right = max(0, CROP - size[1]), max(0, CROP - size[0])
    if below or right:
        constant = cv2.BORDER_CONSTANT
        image = cv2.copyMakeBorder(image, 0, below, 0, right, constant, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, 0, below, 0, right, constant, value=(255,))
    top = _rng.integers(0, label.shape[0] - CROP + 1)
    left = _rng.integers(0, label.shape[1] - CROP + 1)
    image, label = (x[top : top + CROP, left : left + CROP] for x in (image, label))
    if _rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def transform_pil(jpeg: bytes, png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same with Pillow, as LSeg's published code does it."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    label = Image.open(io.BytesIO(png))
    zoom = _rng.integers(LOW, HIGH + 1) / max(image.size)
    if _rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = (round(image.size[0] * zoom), round(image.size[1] * zoom))
    image = image.resize(size, Image.Resampling.BILINEAR)
    label = label.resize(size, Image.Resampling.NEAREST)
    right, below = max(0, CROP - size[0]), max(0, CROP - size[1])
    if right or below:
        image = ImageOps.expand(image, (0, 0, right, below), 0)
        label = ImageOps.expand(label, (0, 0, right, below), 255)
    left = int(_rng.integers(0, image.size[0] - CROP + 1))
    top = int(_rng.integers(0, image.size[1] - CROP + 1))
    box = (left, top, left + CROP, top + CROP)
    return np.array(image.crop(box)), np.array(label.crop(box))


def webdataset_loader(uri: str, images: int, transform: Transform) -> Iterator[Any]:
    """WebDataset's tars through torch's DataLoader; batches are made in its workers."""
    import webdataset
    from torch.utils.data import DataLoader
    from webdataset.gopen import gopen_schemes

    if uri.startswith("s3://"):
        gopen_schemes["s3"] = _open_s3
    urls = [f"{uri}/bench/train/bench-train-{i:06d}.tar" for i in range(12)]

    def crop(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return transform(sample["jpg"], sample["png"])

    dataset = (
        webdataset.WebDataset(urls * 100, shardshuffle=100, nodesplitter=None, empty_check=False)
        .shuffle(100)
        .map(crop)
        .batched(BATCH, partial=False)
        .with_epoch(images // BATCH // WORKERS)
    )
    yield from DataLoader(dataset, batch_size=None, num_workers=WORKERS, worker_init_fn=_prepare)


def ray_webdataset(uri: str, images: int) -> Iterator[Any]:
    """Ray Data's own reader of WebDataset, its decoder off, and the cv2 transform."""
    import ray

    def crop(row: dict[str, Any]) -> dict[str, Any]:
        cv2.setNumThreads(1)
        image, label = transform_cv2(row["jpg"], row["png"])
        return {"image": image, "label": label}

    ray.data.DataContext.get_current().enable_progress_bars = False
    urls = [f"{uri}/bench/train/bench-train-{i:06d}.tar" for i in range(12)]
    passes = -(-images // 384)
    dataset = ray.data.read_webdataset(urls * passes, decoder=None).map(crop)
    taken = 0
    for batch in dataset.iter_batches(batch_size=BATCH, drop_last=True):
        yield batch["image"], batch["label"]
        taken += BATCH
        if taken >= images // BATCH * BATCH:
            return


def mosaicml(uri: str, images: int) -> Iterator[Any]:
    """MosaicML Streaming's dataset and DataLoader, with the cv2 transform."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return transform_cv2(sample["jpg"], sample["png"])

    place: dict[str, Any] = {"local": f"{uri}/mds"}
    if uri.startswith("s3://"):
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        place = {"remote": f"{uri}/mds", "local": str(Path(os.environ["BENCHMARK_FOLDER"], "mds"))}
    count = images // BATCH * BATCH
    dataset = Crops(**place, shuffle=True, batch_size=BATCH, epoch_size=count)
    yield from DataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, worker_init_fn=_prepare, drop_last=True
    )


def _prepare(worker: int) -> None:
    cv2.setNumThreads(1)
    global _rng
    _rng = np.random.default_rng([worker, os.getpid()])


def _open_s3(url: str, *_: Any, **__: Any) -> Any:
    """Streams an object; boto3's body is a file for webdataset's purpose."""
    import boto3

    bucket, key = url.removeprefix("s3://").split("/", 1)
    return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
