"""Frozen text encoders, and label embeddings that are computed once.

A label set is encoded in chunks without gradients and kept by (encoder, templates, labels): no
training step ever runs the text tower. Real encoders are imported when they are first needed.

Shapes: K labels, C embedding.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import STAND_IN, TextConfig
from model.errors import ModelError
from model.settings_file import shown
from model.stand_in import STAND_IN_DIM, stand_in_vectors
from model.text.open_clip_tower import load_open_clip, open_clip_dim
from model.text.templates import names_of, templates_of
from model.weights import require_hub_file

SENTENCE_PREFIX = "sentence-transformers/"
_REPO = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
"""`owner/name` on the hub."""

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

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self._cache: dict[tuple[TextConfig, tuple[str, ...]], Tensor] = {}

    def encode(self, labels: Sequence[str]) -> Tensor:
        """Encodes labels, once for each set of them.

        Args:
            labels: K texts, shown to the encoder as they are (in the templates, if any).

        Returns:
            text_KC: (K, dim) float32, rows of length 1, on the CPU, without a gradient; kept and
            handed out again, so not to be changed in place.

        Raises:
            ModelError: there are no labels.
        """
        if isinstance(labels, str) or not labels:
            raise ModelError(f"labels={labels!r}: must be a list of at least one text: name some")
        key = (self.config, tuple(labels))
        # Taken out and put in again: the first in the dictionary is the one not used for longest.
        found = self._cache.pop(key, None)
        if found is None:
            found = self._embed(list(labels))
        self._cache[key] = found
        for oldest in list(self._cache)[: -self.max_kept]:
            self._cache.pop(oldest, None)
        return found

    # Not in a caller's inference mode: what it makes may not be trained against later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _embed(self, labels: list[str]) -> Tensor:
        templates = templates_of(self.config.templates)
        names = [names_of(label, self.config.synonyms) for label in labels]
        texts = [t.replace("{}", name) for each in names for name in each for t in templates]
        self._warn_of_cut(texts)
        chunks = [
            functional.normalize(self._forward(texts[start : start + self.chunk_size]).float())
            for start in range(0, len(texts), self.chunk_size)
        ]
        vectors, sizes = torch.cat(chunks), [len(each) * len(templates) for each in names]
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


class StandInEncoder(TextEncoder):
    """The offline encoder of `model.stand_in`."""

    dim = STAND_IN_DIM

    def _forward(self, texts: list[str]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(stand_in_vectors(texts)))


class OpenClipEncoder(TextEncoder):
    """The text tower of an open_clip model; loaded at the first `encode`."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config)
        self.dim = open_clip_dim(config)
        self.device = torch.device(device)

    @cached_property
    def tower(self) -> nn.Module:
        """The CLIP model without its image tower, frozen."""
        return load_open_clip(self.config).to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the model."""
        import open_clip

        return open_clip.get_tokenizer(self.config.encoder)

    @property
    def max_tokens(self) -> int:
        """The context of the text tower: 77 for OpenAI's."""
        return int(self.tokenizer.context_length or 0)

    def num_tokens(self, text: str) -> int:
        """Counts the tokens of a text, those of start and end included."""
        if hasattr(self.tokenizer, "encode"):  # OpenAI's byte pairs; others come from transformers.
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(text).input_ids)

    def _forward(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts)
        return cast(Any, self.tower).encode_text(tokens.to(self.device))


class SentenceEncoder(TextEncoder):
    """A sentence-transformers model (an optional extra)."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config)
        name = config.encoder.removeprefix(SENTENCE_PREFIX)
        repo = name if "/" in name else f"sentence-transformers/{name}"
        is_folder = Path(name).is_dir()
        if not is_folder and not _REPO.fullmatch(repo):
            raise ModelError(
                f"text.encoder={config.encoder}: there is no folder {shown(name)}: name one that "
                "holds a sentence-transformers model, or a model of the hub: "
                f"{SENTENCE_PREFIX}all-MiniLM-L6-v2"
            )
        try:
            from sentence_transformers import (  # pyright: ignore[reportMissingImports]
                SentenceTransformer,
            )
        except ImportError as error:
            raise ModelError(
                f"text.encoder={config.encoder}: needs the package sentence-transformers: "
                "install the extra of that name (`pip install '.[sentence-transformers]'`)"
            ) from error
        if not is_folder:
            require_hub_file(
                repo,
                ("config.json",),
                where=f"text.encoder={config.encoder}",
                otherwise=f"or name a folder that holds it: {SENTENCE_PREFIX}PATH",
            )
        try:
            self._model = SentenceTransformer(name, device=str(device))
        # Whatever the libraries below it raise over a folder that holds something else.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"text.encoder={config.encoder}: cannot be loaded ({type(error).__name__}: "
                f"{reason}): must be a sentence-transformers model: name its folder or its name"
            ) from error
        # Renamed between versions.
        width = getattr(self._model, "get_embedding_dimension", None)
        self.dim = int((width or self._model.get_sentence_embedding_dimension)())

    @property
    def max_tokens(self) -> int:
        """The model's own limit."""
        return int(self._model.max_seq_length or 0)

    def num_tokens(self, text: str) -> int:
        """Counts the tokens of a text, those of start and end included."""
        return len(self._model.tokenizer(text)["input_ids"])

    def _forward(self, texts: list[str]) -> Tensor:
        return torch.as_tensor(self._model.encode(texts, convert_to_tensor=True))


def build_text_encoder(config: TextConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """Builds the encoder that a configuration names; CLIP's weights come at the first `encode`.

    Args:
        config: which one.
        device: where it runs; its results are handed out on the CPU.

    Raises:
        ModelError: an unknown encoder; at the first `encode`: weights that could not be fetched.
    """
    if config.encoder == STAND_IN:
        return StandInEncoder(config)
    if config.encoder.startswith(SENTENCE_PREFIX):
        return SentenceEncoder(config, device)
    return OpenClipEncoder(config, device)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
