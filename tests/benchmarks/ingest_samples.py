"""The samples of the ingest benchmark: pictures as detailed as photographs, and their labels.

Each set is a folder of shards: `photo` has pictures of 1024x683 (one in five upright), `wide` those
of 2048x1024, as street scenes are, and `wide-1040` the same pictures as `--train_long_side 1040`
stores them.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

BATCH = 16
NUM_DISTINCT, NUM_SHARDS, PER_SHARD = 48, 12, 32
SETS = ("photo", "wide", "wide-1040")
LONG_SIDE_PX = 1040
SHORT_SIDE_PX = 1080  # What the conversion leaves as it is by default.
_Picture = tuple[bytes, bytes, int, int]
"""JPEG, label PNG, height, width."""
_STREAMING = """
import sys
from streaming import MDSWriter
from pipeline.data.ingest.stream import SampleReader, open_corpus
corpus = open_corpus(sys.argv[1], "train")
reader = SampleReader(corpus)
with MDSWriter(out=sys.argv[1] + "/mds", columns={"jpg": "bytes", "png": "bytes"}) as out:
    for index in range(corpus.sizes["bench"]):
        stored = reader.read_stored("bench", index)
        out.write({"jpg": stored.jpeg, "png": stored.png})
"""


def write_samples(folder: Path, streaming_python: str, name: str) -> tuple[int, float, float]:
    """Writes the shards of a set, and its samples in MosaicML's format where that is installed.

    Args:
        folder: Where the shards go.
        streaming_python: Interpreter of an environment that may have MosaicML Streaming.
        name: One of `SETS`.

    Returns:
        Number of samples, and the mean sizes of their JPEGs and PNGs in KB.
    """
    rng = np.random.default_rng(0)
    pictures = [_picture(rng, index, name) for index in range(NUM_DISTINCT)]
    write_shards(folder, pictures, NUM_SHARDS, PER_SHARD)
    done = subprocess.run(
        [streaming_python, "-c", _STREAMING, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print("no MosaicML Streaming:", done.stderr.strip().splitlines()[-1:], file=sys.stderr)
    sizes = np.array([(len(jpeg), len(png)) for jpeg, png, *_ in pictures]).mean(0) / 1e3
    return NUM_SHARDS * PER_SHARD, float(sizes[0]), float(sizes[1])


def _picture(rng: np.random.Generator, index: int, name: str) -> _Picture:
    """One picture of a set, stored as the conversion stores it."""
    from pipeline.data.pixels.encode import resize_image, resize_label, shrunk_size

    upright = name == "photo" and index % 5 == 0
    size = (683, 1024) if name == "photo" else (1024, 2048)
    height, width = size[::-1] if upright else size
    label = _clouds(rng, height, width, 12, 5, 0.5).argmax(2).astype(np.uint8) * 7
    image = _clouds(rng, height, width, 3, 9, 0.62)
    image = image / image.std() * 38 + 120 + label[..., None] % 31 - 15
    image += rng.standard_normal(image.shape) * 4.5
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if name == "photo":
        return _encoded(pixels, label, quality=90)
    long_side_px = LONG_SIDE_PX if name == "wide-1040" else 0
    stored = shrunk_size(height, width, SHORT_SIDE_PX, long_side_px)
    if stored != (height, width):
        pixels, label = resize_image(pixels, stored), resize_label(label, stored)
    return _encoded(pixels, label, quality=95)


def write_shards(
    folder: Path, pictures: Sequence[_Picture], num_shards: int, per_shard: int
) -> None:
    """Writes the shards of a dataset `bench`, which repeat some pictures."""
    from pipeline.data.shards.format import FORMAT_VERSION, EncodedSample, Manifest, ShardWriter
    from pipeline.data.taxonomy import universal
    from pipeline.storage.open import open_storage

    storage = open_storage(str(folder))
    shards = []
    for shard in range(num_shards):
        with ShardWriter(storage, "bench", "train", shard) as writer:
            for index in range(shard * per_shard, (shard + 1) * per_shard):
                jpeg, png, height, width = pictures[index % len(pictures)]
                meta = {"index": index}
                size = {"height": height, "width": width}
                writer.write(EncodedSample(f"{index:06d}", jpeg, png, meta, **size))
            shards.append(writer.finish())
    known = universal()
    place = (FORMAT_VERSION, "bench", "train", known.name, known.fingerprint, "", {})
    manifest = Manifest(*place, tuple(shards), (1,) * len(known.classes), ())
    storage.write("bench/train/manifest.json", manifest.to_json().encode())


def plain_picture() -> _Picture:
    """A small picture of one class."""
    return _encoded(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), quality=90)


def _encoded(image: np.ndarray, label: np.ndarray, quality: int) -> _Picture:
    from pipeline.data.pixels.encode import encode_jpeg, encode_label

    return encode_jpeg(image, quality), encode_label(label), *label.shape


def _clouds(
    rng: np.random.Generator, height: int, width: int, channels: int, octaves: int, fall: float
) -> np.ndarray:
    """(height, width, channels) float32 noise whose octaves weaken by `fall`, as photographs'."""
    total = np.zeros((height, width, channels), np.float32)
    for octave in range(octaves):
        side = 3 * 2**octave
        size = (min(height, 2 * side), min(width, 3 * side), channels)
        noise = rng.standard_normal(size).astype(np.float32)
        grown = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        total += grown.reshape(height, width, channels) * fall**octave
    return total
