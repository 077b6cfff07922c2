"""A network that answers questions from outside: what it accepts of them, and its answers.

The MLflow pyfunc and the service over HTTP share it. What comes from outside is not trusted: images
are bytes, never paths or addresses, and everything has limits (`Limits`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.lseg import LSeg
from model.prediction import NO_LABEL
from model.sliding import SlidingConfig, sliding_label_ids
from model.text.encoder import drop_oldest
from model.text.templates import num_texts
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.pixels.checks import BadSample, TooManyPixels
from pipeline.data.pixels.encode import image_size
from pipeline.errors import UserError
from pipeline.inference.config import (
    Other,
    PredictConfig,
    check_vectors,
    parse_other,
    sliding_for,
)
from pipeline.inference.photos import decode_photo
from pipeline.inference.readout import pixel_vectors, probability_bands
from pipeline.inference.segmenter import seen_image
from pipeline.inference.served_limits import Limits, TooLarge

MAX_KEPT, MAX_KEPT_MIB = 64, 256
"""Label sets whose vectors are kept, and their memory."""


@dataclass(frozen=True)
class Question:
    """What is asked about an image, within the limits."""

    labels: tuple[str, ...]
    other: Other
    sliding: SlidingConfig
    vectors: Tensor | None = field(default=None, compare=False, repr=False)
    """(T, C) of the labels, then of the texts that mean none of them; None: not encoded yet."""


class ServedNetwork:
    """A loaded network and its limits. Several threads may ask it."""

    def __init__(self, folder: Path, device: torch.device | str, limits: Limits) -> None:
        self.limits = limits
        self.lseg = LSeg.load(folder, device).eval()
        self.lseg.embed_text(["other"])  # Loads the text encoder, so that a service fails early.
        self._trained = read_provenance(folder).trained_size
        self._kept: dict[tuple[tuple[str, ...], Other], Tensor] = {}
        self._texts = Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the training; empty where the checkpoint has none."""
        return tuple(self.lseg.labels)

    def usual_sliding(self) -> SlidingConfig:
        """How the network sees an image where nothing is asked: as in training."""
        return sliding_for(PredictConfig(checkpoint=""), self._trained)

    def question(
        self, given: Mapping[str, Any], check: Callable[[], None] | None = None
    ) -> Question:
        """Reads `labels`, `other`, `view` and `base_px`, each of which may be left out.

        Args:
            given: What was sent.
            check: See `encoded`.

        Raises:
            UserError: One is of a wrong kind, or beyond a limit.
        """
        return self.encoded(self.read(given), check)

    def read(self, given: Mapping[str, Any]) -> Question:
        """Reads what `question` does; the vectors are there only where they are kept.

        Raises:
            UserError: One is of a wrong kind, or beyond a limit.
        """
        other = parse_other(_text("other", given.get("other", "none")))
        labels = self._labels(given.get("labels", ()), other)
        return Question(labels, other, self.sliding(given), self._kept_vectors(labels, other))

    def sliding(self, given: Mapping[str, Any]) -> SlidingConfig:
        """Reads `view` and `base_px`, each of which may be left out.

        Raises:
            UserError: One is of a wrong kind, or beyond a limit.
        """
        view, base_px = _text("view", given.get("view", "single")), given.get("base_px", 0)
        # numpy's numbers are what MLflow makes of some requests.
        if not isinstance(base_px, int | np.integer):
            raise UserError(f"base_px={base_px!r}: must be a whole number: correct it")
        if view not in ("single", "published", "whole"):
            raise UserError(f"view={view}: must be single, published or whole: correct it")
        base_px, largest = int(base_px), self.limits.max_base_px // (2 if view == "whole" else 1)
        if base_px and not 8 <= base_px <= largest:
            raise UserError(
                f"base_px={base_px}: must be 8 to {largest}, or 0 for that of the training"
            )
        config = PredictConfig(checkpoint="", view=view, base_px=base_px or None)
        return sliding_for(config, self._trained)

    def encoded(self, question: Question, check: Callable[[], None] | None = None) -> Question:
        """The question with the vectors of its texts, which may take long the first time.

        Args:
            question: What `read` gave.
            check: Called before each chunk of texts; what it raises ends the work.

        Raises:
            UserError: Two texts are the same to the encoder.
        """
        if question.vectors is not None:
            return question
        labels, other = question.labels, question.other
        vectors = self._kept_vectors(labels, other)
        if vectors is None:  # What is kept was checked.
            vectors = self.lseg.embed_text([*labels, *other.texts], check)
            is_trained = labels == self.labels
            check_vectors(labels, other, vectors.cpu().numpy(), "labels", is_trained)
            self._keep(labels, other, vectors)
        return replace(question, vectors=vectors)

    def check_mib(self, where: str, data: bytes) -> None:
        """Refuses a file that is too large.

        Raises:
            TooLarge: It is.
        """
        if len(data) > self.limits.max_image_mib * 2**20:
            raise TooLarge(
                f"{where}: {len(data) / 2**20:.1f} MiB: must be at most "
                f"{self.limits.max_image_mib:g} MiB: shrink it"
            )

    def size(self, where: str, data: bytes) -> tuple[int, int]:
        """Reads height and width of an image file from its header.

        Raises:
            TooLarge: It has too many pixels.
            UserError: It is no image.
        """
        with self._bad_images(where):
            return image_size(data, int(self.limits.max_image_mpx * 1e6))

    def decode(self, where: str, data: bytes) -> np.ndarray:
        """Decodes an image file, the right way up: (H, W, 3) uint8 RGB.

        Raises:
            TooLarge: It has too many pixels.
            UserError: It is none.
        """
        with self._bad_images(where):
            return decode_photo(data, int(self.limits.max_image_mpx * 1e6))

    def see(self, image: np.ndarray, question: Question) -> np.ndarray:
        """Shrinks an image (H, W, 3) uint8 RGB to what the network takes of it."""
        return seen_image(image, question.sliding)

    def label_ids(self, seen: np.ndarray, size: tuple[int, int], question: Question) -> np.ndarray:
        """Segments images of one size.

        Args:
            seen: (B, H, W, 3) uint8 RGB, see `see`.
            size: (H, W) of the results.
            question: What is asked of all of them.

        Returns:
            (B, H, W) int64: positions in the labels, or -1.
        """
        labels, other = question.labels, question.other
        with torch.inference_mode():
            ids = sliding_label_ids(
                self.lseg,
                self.lseg.normalize(torch.from_numpy(seen)),
                self.vectors(question),
                question.sliding,
                size,
                other.threshold,
            )
            return ids.where(ids < len(labels), NO_LABEL).cpu().numpy()

    def probabilities(
        self, seen: np.ndarray, size: tuple[int, int], question: Question
    ) -> np.ndarray:
        """Gives the probabilities of one image, with one more row where `other` is texts.

        Args:
            seen: (H, W, 3) uint8 RGB, see `see`.
            size: (H, W) of the result.
            question: What is asked.

        Returns:
            (K, H, W) float16.
        """
        labels, other = question.labels, question.other
        found = np.empty((len(labels) + bool(other.texts), *size), np.float16)
        with torch.inference_mode():
            batch = self.lseg.normalize(torch.from_numpy(seen)[None])
            for rows, kept, _ in probability_bands(
                self.lseg, batch, self.vectors(question), len(labels), question.sliding, size, None
            ):
                found[:, rows] = kept[0]
        return found

    def pixel_vectors(self, seen: np.ndarray, sliding: SlidingConfig) -> np.ndarray:
        """Embeds the pixels of one image (H, W, 3) uint8 RGB: (C, h, w) float16."""
        with torch.inference_mode():
            batch = self.lseg.normalize(torch.from_numpy(seen)[None])
            return pixel_vectors(self.lseg, batch, sliding)

    def vectors(self, question: Question) -> Tensor:
        """The (T, C) vectors of a question's labels, then of the texts that mean none of them."""
        vectors = question.vectors
        if vectors is None:  # It was made by a caller of this process, who answers for its texts.
            vectors = self._kept_vectors(question.labels, question.other)
        if vectors is None:
            vectors = self.lseg.embed_text([*question.labels, *question.other.texts])
            self._keep(question.labels, question.other, vectors)
        return vectors

    def _kept_vectors(self, labels: tuple[str, ...], other: Other) -> Tensor | None:
        with self._texts:
            found = self._kept.pop((labels, other), None)
            if found is not None:  # The first in the dictionary is the one not used for longest.
                self._kept[labels, other] = found
            return found

    def _keep(self, labels: tuple[str, ...], other: Other, vectors: Tensor) -> None:
        with self._texts:
            self._kept[labels, other] = vectors
            drop_oldest(self._kept, MAX_KEPT, MAX_KEPT_MIB)

    def _labels(self, given: Any, other: Other) -> tuple[str, ...]:
        limits = self.limits
        labels = tuple(
            " ".join(_text(f"labels[{number}]", label).split())
            for number, label in enumerate(given)
        )
        if not labels:
            if not self.lseg.labels:
                raise UserError("labels: none given, and the model brings none: name some")
            labels = self.labels
        elif len(labels) > limits.max_labels:
            raise UserError(
                f"labels: {len(labels)} given: must be at most {limits.max_labels}: ask in parts"
            )
        else:
            self._check_each(labels)
        longest = max((len(text) for text in other.texts), default=0)
        if len(other.texts) > limits.max_labels or longest > limits.max_label_chars:
            raise UserError(
                f"other: must be at most {limits.max_labels} texts of {limits.max_label_chars} "
                "characters: shorten it"
            )
        both = [text for text in other.texts if text in labels]
        if both:
            raise UserError(f"other={both[0]}: is one of the labels too: drop it from one of them")
        texts = num_texts([*labels, *other.texts], self.lseg.config.text)
        if labels != self.labels and texts > limits.max_texts:
            raise UserError(
                f"labels: {texts} texts with their names in all templates: must be at most "
                f"{limits.max_texts}: ask in parts"
            )
        return labels

    def _check_each(self, labels: Sequence[str]) -> None:
        seen: set[str] = set()
        for number, label in enumerate(labels):
            if not 0 < len(label) <= self.limits.max_label_chars:
                raise UserError(
                    f"labels[{number}]: {len(label)} characters: must be 1 to "
                    f"{self.limits.max_label_chars}: shorten it"
                )
            if label in seen:
                raise UserError(f"labels[{number}]={label!r}: is named twice: drop one")
            seen.add(label)

    @contextmanager
    def _bad_images(self, where: str) -> Iterator[None]:
        try:
            yield
        except BadSample as error:
            kind = TooLarge if isinstance(error, TooManyPixels) else UserError
            raise kind(
                f"{where}: {error}: must be a JPEG, PNG, WebP, TIFF, BMP, PPM or GIF of at "
                f"most {self.limits.max_image_mpx:g} megapixels"
            ) from None


def total_mpx(sizes: Sequence[tuple[int, int]]) -> float:
    """Megapixels of images of these heights and widths."""
    return sum(math.prod(size) for size in sizes) / 1e6


def _text(where: str, value: Any) -> str:
    """A parameter that must be text which can be encoded."""
    if not isinstance(value, str):
        raise UserError(f"{where}={value!r}: must be a text: drop it, or write it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}={value!r}: holds half a character: correct it") from None
    return value
