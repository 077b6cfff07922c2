"""The frozen text encoder: labels in, unit vectors out, each label set encoded once.

A label set is encoded in chunks without gradients and kept by (encoder, templates, labels): a
training step runs no text tower, unless the tower is trained (`model.text.trained`). What makes the
vectors is a subclass's.

Templates as channels (`text.channels`): a label's row holds its vectors in the templates one after
another, so that code which only hands labels on need not know of it.

Shapes: K labels, C embedding, P templates that are channels, else 1.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.config import TextConfig
from model.errors import ModelError
from model.text.templates import channels_of, texts_of

_MOST_SHOWN = 5

logger = logging.getLogger(__name__)


class TextEncoder(ABC):
    """Turns label texts into unit vectors."""

    dim: int
    """Length of a vector."""
    chunk_size = 256
    """Texts that are encoded at a time."""
    max_kept = 256
    """Label sets whose vectors are kept: a service is asked with any number of them."""
    max_kept_mib = 256
    """Memory of these vectors; the newest set is kept however large it is."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self._cache: dict[tuple[TextConfig, tuple[str, ...]], Tensor] = {}

    def encode(self, labels: Sequence[str], check: Callable[[], None] | None = None) -> Tensor:
        """Encodes labels, once for each set of them.

        Args:
            labels: K texts, shown to the encoder as they are (in the templates, if any).
            check: called before each chunk of texts; what it raises ends the work.

        Returns:
            text_KC: (K, P * dim) float32, rows of length 1, on the CPU, without a gradient; kept
            and handed out again, so not to be changed in place.

        Raises:
            ModelError: there are no labels.
        """
        if isinstance(labels, str) or not labels:
            raise ModelError(f"labels={labels!r}: must be a list of at least one text: name some")
        key = (self.config, tuple(labels))
        # Taken out and put in again: the first in the dictionary is the one not used for longest.
        found = self._cache.pop(key, None)
        if found is None:
            found = self._embed(list(labels), check)
        self._cache[key] = found
        drop_oldest(self._cache, self.max_kept, self.max_kept_mib)
        return found

    # Not in a caller's inference mode: what it makes may not be trained against later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _embed(self, labels: list[str], check: Callable[[], None] | None) -> Tensor:
        texts_of_each = texts_of(labels, self.config)
        texts = [text for each in texts_of_each for text in each]
        self._warn_of_cut(texts)
        chunks = []
        for start in range(0, len(texts), self.chunk_size):
            if check is not None:
                check()
            chunk = self._forward(texts[start : start + self.chunk_size])
            chunks.append(functional.normalize(chunk.float()))
        vectors, sizes = torch.cat(chunks), [len(each) for each in texts_of_each]
        if self.config.channels:
            channels = channels_of(self.config)
            parts = (part.unflatten(0, (-1, channels)) for part in vectors.split(sizes))
            apart_KPC = torch.stack([part.mean(dim=0) for part in parts])
            # Each of length 1 before they are put into one row.
            return functional.normalize(functional.normalize(apart_KPC, dim=2).flatten(1)).cpu()
        if len(set(sizes)) == 1:
            means = vectors.unflatten(0, (len(labels), sizes[0])).mean(dim=1)
        else:
            means = torch.stack([part.mean(dim=0) for part in vectors.split(sizes)])
        return functional.normalize(means).cpu()

    @abstractmethod
    def _forward(self, texts: list[str]) -> Tensor:
        """Encodes one chunk: (len(texts), dim), of any length."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that the encoder reads, those of start and end included; 0: all."""
        return 0

    def num_tokens(self, text: str) -> int:
        """Counts the tokens of a text, those of start and end included."""
        return 0

    def _warn_of_cut(self, texts: Sequence[str]) -> None:
        """Names the texts of which the encoder reads only the beginning."""
        most = self.max_tokens
        # A token holds at least a byte, so that short texts need no counting.
        long = [text for text in texts if most and len(text.encode(errors="replace")) > most // 2]
        counts = [(text, count) for text in long if (count := self.num_tokens(text)) > most]
        if not counts:
            return
        shown = [f"{count} in {_short(text)!r}" for text, count in counts[:_MOST_SHOWN]]
        if len(counts) > _MOST_SHOWN:
            shown.append(f"and {len(counts) - _MOST_SHOWN} more texts")
        logger.warning(
            "labels: %s reads %d tokens of a text and not the rest, so that labels which differ "
            "there alone are the same to it; tokens: %s: shorten them",
            self.config.encoder,
            most,
            "; ".join(shown),
        )


def drop_oldest(kept: dict[Any, Tensor], max_number: int, max_mib: float) -> None:
    """Drops what was put in first until the rest is within both bounds; the newest stays."""
    size = sum(vectors.nbytes for vectors in list(kept.values()))
    for key in list(kept)[:-1]:
        if len(kept) <= max_number and size <= max_mib * 2**20:
            return
        dropped = kept.pop(key, None)
        size -= 0 if dropped is None else dropped.nbytes


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
