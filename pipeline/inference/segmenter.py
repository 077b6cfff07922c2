"""From images to the files of their segmentation; one worker's work, knows no Ray.

Each image NAME becomes `NAME.png`, whose values are positions in the list of labels (8 bits with a
palette, 255 for no label; 16 bits and 65535 beyond 255 labels), and what else was asked for. The
index is written last, so that an image that has one is done.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image

from model.lseg import LSeg
from model.prediction import NO_LABEL
from model.sliding import SlidingConfig, sliding_label_ids, window_grid
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.palette import NO_LABEL_COLOUR, PaletteName, name_colours
from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig
from pipeline.inference.overlay import draw_photo
from pipeline.inference.photos import Photo, decode_photo
from pipeline.inference.readout import pixel_vectors, probability_bands
from pipeline.inference.shares import shares_of
from pipeline.storage.names import why_unusable
from pipeline.storage.open import open_storage

MAX_BATCH_MPX = 24
"""Megapixels of the images of one size that go through the network together."""

OVERLAY_QUALITY = 92


@dataclass(frozen=True)
class SegmentTask:
    """The task of all workers: what to make of every image."""

    checkpoint: str
    labels: tuple[str, ...]
    text_TC: np.ndarray
    """(T, C) float32: vectors of the labels, then of the texts that mean none of them."""
    none_name: str
    """The legend's name for pixels of no label."""
    threshold: float | None
    sliding: SlidingConfig
    out: str
    config: PredictConfig
    """The job's: which results to write, in which colours and precision."""


@dataclass(frozen=True)
class PhotoOutcome:
    """The outcome of one image."""

    uri: str
    name: str
    error: str = ""
    """Why there is no result; empty when there is one."""
    shares: dict[int, float] = field(default_factory=dict)
    """Share of its pixels of each label that it shows, see `shares_of`."""


class Segmenter:
    """A loaded network that segments images."""

    def __init__(self, task: SegmentTask, device: torch.device | str) -> None:
        self._task = task
        self._device = torch.device(device)
        use_prefetched()
        self._lseg = LSeg.load(task.checkpoint, self._device).eval()
        self._text_TC = torch.from_numpy(np.array(task.text_TC)).to(self._device)
        self._out = open_storage(task.out)

    def segment(self, photos: Sequence[Photo]) -> list[PhotoOutcome]:
        """Segments images and stores the results; an unreadable image is an outcome too."""
        with ThreadPoolExecutor(4, thread_name_prefix="decode") as pool:
            decoded = list(pool.map(_decode, photos))
        outcomes, whole = [], []
        for photo, image in zip(photos, decoded, strict=True):
            if isinstance(image, str):
                outcomes.append(PhotoOutcome(photo.uri, photo.name, image))
            else:
                whole.append((photo, image))
        return outcomes + self.segment_decoded(whole)

    def segment_decoded(self, whole: Sequence[tuple[Photo, np.ndarray]]) -> list[PhotoOutcome]:
        """Segments decoded images, (H, W, 3) uint8 RGB of any sizes, and stores the results."""
        outcomes = []
        for batch in _of_one_size(whole):
            with writing_errors(self._task.config.out):
                found = self._segment([photo for photo, _ in batch], [image for _, image in batch])
            outcomes += [
                PhotoOutcome(photo.uri, photo.name, shares=shares)
                for (photo, _), shares in zip(batch, found, strict=True)
            ]
        return outcomes

    def _segment(self, photos: list[Photo], images: list[np.ndarray]) -> list[dict[int, float]]:
        task, config = self._task, self._task.config
        size = (images[0].shape[0], images[0].shape[1])
        seen = np.stack([seen_image(image, task.sliding) for image in images])
        amp = torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(), amp:
            batch = self._lseg.normalize(torch.from_numpy(seen))
            files = [Path(scratch) / f"{number}.npy" for number in range(len(photos))]
            if config.probabilities:
                ids = self._with_probabilities(batch, size, files)
            else:
                ids = sliding_label_ids(
                    self._lseg, batch, self._text_TC, task.sliding, size, task.threshold
                )
                ids = ids.where(ids < len(task.labels), NO_LABEL).cpu().numpy()
            for number, photo in enumerate(photos):
                if config.probabilities:
                    self._out.upload(f"{photo.name}.probabilities.npy", files[number])
                if config.features:
                    one = batch[number : number + 1]
                    np.save(files[number], pixel_vectors(self._lseg, one, task.sliding))
                    self._out.upload(f"{photo.name}.features.npy", files[number])
                if config.overlay:
                    drawn = self._overlay(images[number], ids[number])
                    self._out.write(f"{photo.name}.overlay.jpg", drawn)
                index = encode_index(ids[number], task.labels, config.palette)
                self._out.write(f"{photo.name}.png", index)
            return [shares_of(ids[number]) for number in range(len(photos))]

    def _with_probabilities(
        self, batch: torch.Tensor, size: tuple[int, int], files: Sequence[Path]
    ) -> np.ndarray:
        """Writes the probabilities by bands of rows; returns the ids (B, H, W)."""
        task, num_labels = self._task, len(self._task.labels)
        num_rows = num_labels + (len(self._text_TC) > num_labels)
        maps = [
            open_memmap(path, mode="w+", dtype=np.float16, shape=(num_rows, *size))
            for path in files
        ]
        ids = np.empty((len(files), *size), np.int64)
        bands = probability_bands(
            self._lseg, batch, self._text_TC, num_labels, task.sliding, size, task.threshold
        )
        for rows, kept, best in bands:
            ids[:, rows] = best
            for target, source in zip(maps, kept, strict=True):
                target[:, rows] = source
        for target in maps:
            target.flush()
        return ids

    def _overlay(self, image: np.ndarray, ids: np.ndarray) -> bytes:
        task = self._task
        drawn = draw_photo(image, ids, task.labels, task.none_name, task.config.palette)
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=OVERLAY_QUALITY, subsampling=0)
        return buffer.getvalue()


def seen_image(image: np.ndarray, sliding: SlidingConfig) -> np.ndarray:
    """Shrinks an image (H, W, 3) uint8 RGB for the network, to what the largest scale needs.

    The protocol's own resizing takes single pixels, of which a large photo loses most; here each
    pixel becomes the mean of its area first.
    """
    height, width = image.shape[:2]
    grid = window_grid((height, width), max(sliding.scales), sliding)
    if max(grid.height, grid.width) >= max(height, width):
        return image
    return cv2.resize(image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)


def encode_index(ids: np.ndarray, labels: Sequence[str], palette: PaletteName) -> bytes:
    """Writes label ids (H, W), integers, positions in `labels` or NO_LABEL, as a PNG.

    Up to 255 labels it has 8 bits with a palette, 255 for no label; beyond, 16 bits, 65535.
    """
    buffer, num_labels = io.BytesIO(), len(labels)
    if num_labels <= 255:
        image = Image.fromarray(np.where(ids == NO_LABEL, 255, ids).astype(np.uint8), "P")
        colours = np.zeros((256, 3), np.uint8)
        colours[:num_labels] = name_colours(labels, palette)
        colours[255] = NO_LABEL_COLOUR
        image.putpalette(colours.tobytes())
    else:
        image = Image.fromarray(np.where(ids == NO_LABEL, 65_535, ids).astype(np.uint16))
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def writing_errors(out: str) -> Iterator[None]:
    """Turns what a full or broken disk answers into one message."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"out={out}: results cannot be written there or to the temporary folder ({reason}): "
            "make room, or set TMPDIR; the same command goes on, and what is done is kept"
        ) from error


def _decode(photo: Photo) -> np.ndarray | str:
    """The decoded image, or why it could not be read."""
    if reason := why_unusable(photo.path):
        return reason
    try:
        return decode_photo(photo.read())
    except (BadSample, OSError, UserError) as error:
        return str(error)


def _of_one_size(
    decoded: Sequence[tuple[Photo, np.ndarray]],
) -> Iterator[list[tuple[Photo, np.ndarray]]]:
    """Batches of images of one size, up to MAX_BATCH_MPX."""
    ordered = sorted(decoded, key=lambda pair: pair[1].shape)
    for shape, group in groupby(ordered, key=lambda pair: pair[1].shape):
        pairs = list(group)
        together = max(1, int(MAX_BATCH_MPX * 1e6 / (shape[0] * shape[1])))
        for first in range(0, len(pairs), together):
            yield pairs[first : first + together]
