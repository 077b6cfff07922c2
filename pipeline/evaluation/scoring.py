"""Scores the images of a part with a network, and counts: one worker's work, which knows no Ray.

What a chunk counts depends on its images alone: they are batched within it, never across, so any
number of workers counts the same.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.label_twins import label_twins
from model.lseg import LSeg
from model.metrics import ConfusionMatrix
from model.text import TextEncoder
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.errors import UserError
from pipeline.evaluation.items import Item, UnreadableItem
from pipeline.evaluation.plan import Part
from pipeline.evaluation.views import network_input, scored_size, scored_target, sliding_config
from pipeline.scoring import DROPPED, predict, read_ahead

Prepared = tuple[int, Item, np.ndarray]
"""Position, item, and the image as the network gets it."""


@dataclass(frozen=True)
class ItemScore:
    """The figures of one image."""

    position: int
    key: str
    stratum: int
    miou: float | None
    """Mean IoU over the classes of its label; None where no pixel counts."""
    pixel_accuracy: float | None
    counted_px: int


@dataclass
class Counts:
    """The counts of some images; adding them is exact, in any order."""

    matrices: np.ndarray
    """(S, K+1, K+1) int64: [stratum, target, prediction]; prediction K is none of the classes."""
    scores: list[ItemScore] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Key of each image that could not be read, and the reason."""

    @classmethod
    def empty(cls, part: Part) -> "Counts":
        """Counts of no image."""
        size = len(part.space.classes) + 1
        return cls(np.zeros((len(part.strata), size, size), np.int64))

    def add(self, other: "Counts") -> None:
        """Adds the counts of other images."""
        self.matrices += other.matrices
        self.scores += other.scores
        self.unreadable += other.unreadable

    def to_bytes(self) -> bytes:
        """Encodes the counts for storage, without pickles."""
        notes = {"scores": [asdict(s) for s in self.scores], "unreadable": self.unreadable}
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        np.savez_compressed(buffer, matrices=self.matrices, notes=text)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Counts":
        """Decodes what `to_bytes` wrote; raises any of a reader's errors over damaged bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            notes = json.loads(stored["notes"].tobytes())
            matrices = stored["matrices"]
        scores = [ItemScore(**values) for values in notes["scores"]]
        return cls(matrices, scores, [(key, reason) for key, reason in notes["unreadable"]])


def check_texts(part: Part, encoder: TextEncoder) -> None:
    """Refuses classes whose texts are the same to the text encoder: rounding would choose one.

    Texts that are equal letter by letter are a protocol's own, and its figures count them so.

    Raises:
        UserError: Two texts that differ in spelling alone stand for two classes.
    """
    space = part.space
    asked = {space.texts} if space.texts else {*getattr(part.source, "texts", ())}
    for texts in asked:
        for first, later in label_twins(encoder.encode(texts).numpy()):
            classes = space.text_class[first], space.text_class[later]
            if texts[first] == texts[later] or classes[0] == classes[1] or DROPPED in classes:
                continue
            what = f"{texts[first]!r} and {texts[later]!r} are the same to the text encoder"
            if space.none in classes:
                raise UserError(
                    f"other.prompts: {what}, and stand for a class and for none: drop the prompt"
                )
            raise UserError(
                f"{part.name}: {what}, and stand for two classes, so that rounding would choose "
                "one: name them by other words"
            )


class Scorer:
    """A loaded network, and the parts that it may be asked about.

    `batch_images` of one size go through the network together, with precision `bf16` under
    autocast.
    """

    def __init__(
        self,
        checkpoint: str,
        parts: Sequence[Part],
        device: torch.device,
        batch_images: int,
        precision: str = "fp32",
    ) -> None:
        use_prefetched()
        self._lseg = LSeg.load(checkpoint, device)
        self._encoder = self._lseg.text_encoder
        self._parts, self._device, self._batch_images = parts, device, batch_images
        self._amp = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self._open: dict[int, Callable[[int], Item]] = {}
        for part in parts:
            check_texts(part, self._encoder)

    def score(self, part_number: int, positions: Sequence[int]) -> Counts:
        """Counts some images of a part."""
        part = self._parts[part_number]
        counts = Counts.empty(part)
        by_size: dict[tuple[Any, ...], list[Prepared]] = {}
        for position, item in read_ahead(self._reader(part_number), positions, UnreadableItem):
            if isinstance(item, UnreadableItem):
                counts.unreadable.append((part.source.keys()[position], str(item)))
                continue
            prepared = network_input(item.image, part.geometry)
            key = (prepared.shape, scored_size(item, part.geometry))
            waiting = by_size.setdefault(key, [])
            waiting.append((position, item, prepared))
            if len(waiting) == self._batch_images:
                self._count(part, by_size.pop(key), counts)
        for waiting in by_size.values():
            self._count(part, waiting, counts)
        counts.scores.sort(key=lambda score: score.position)
        return counts

    def example(self, part_number: int, position: int) -> tuple[Item, np.ndarray, np.ndarray]:
        """An image, its target (H, W) uint8 and the prediction (H, W) int64, for a report."""
        part = self._parts[part_number]
        item = self._reader(part_number)(position)
        prepared = network_input(item.image, part.geometry)
        (prediction,) = self._predict(part, [(position, item, prepared)])
        target = scored_target(part.space.target(item.stored), part.geometry)
        return item, target, prediction.numpy()

    def _reader(self, part_number: int) -> Callable[[int], Item]:
        if part_number not in self._open:
            self._open[part_number] = self._parts[part_number].source.open()
        return self._open[part_number]

    def _predict(self, part: Part, batch: Sequence[Prepared]) -> Tensor:
        """The class of each pixel, at the size at which the images are scored: (B, H, W)."""
        texts = [item.texts or part.space.texts for _, item, _ in batch]
        images = [image for *_, image in batch]
        size = scored_size(batch[0][1], part.geometry)
        with self._amp:
            text, sliding = self._text(texts), sliding_config(part.geometry)
            return predict(self._lseg, images, text, part.space, sliding, size).cpu()

    def _text(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """(T, C) where all images ask the same, else (B, T, C)."""
        if all(asked == texts[0] for asked in texts):
            return self._encoder.encode(texts[0]).to(self._device)
        return torch.stack([self._encoder.encode(asked) for asked in texts]).to(self._device)

    def _count(self, part: Part, batch: Sequence[Prepared], counts: Counts) -> None:
        for (position, item, _), prediction in zip(batch, self._predict(part, batch), strict=True):
            target = scored_target(part.space.target(item.stored), part.geometry)
            matrix = ConfusionMatrix(len(part.space.classes) + 1)
            matrix.update(prediction, target)
            counts.matrices[item.stratum] += matrix.counts.numpy()
            total = int(matrix.counts.sum())
            iou = matrix.miou(over="target") if total else None
            accuracy = matrix.pixel_accuracy() if total else None
            counts.scores.append(ItemScore(position, item.key, item.stratum, iou, accuracy, total))
