"""The kinds of text encoders, and which of them a configuration names.

Real encoders are imported when they are first needed.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ONE_HOT, STAND_IN, TABLE, TextConfig
from model.errors import ModelError
from model.hub_files import require_hub_file
from model.packages import PACKAGE
from model.settings_file import shown
from model.stand_in import STAND_IN_DIM, one_hot_vectors, stand_in_vectors
from model.text.encoder import TextEncoder
from model.text.open_clip_tower import (
    load_open_clip,
    open_clip_asks_the_hub,
    open_clip_dim,
    require_open_clip_weights,
)
from model.text.package_tower import PackageEncoder
from model.text.table import TableEncoder

SENTENCE_PREFIX = "sentence-transformers/"
_REPO = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
"""`owner/name` on the hub."""


class StandInEncoder(TextEncoder):
    """The offline encoder of `model.stand_in`."""

    dim = STAND_IN_DIM

    def _forward(self, texts: list[str]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(stand_in_vectors(texts)))


class OneHotEncoder(TextEncoder):
    """A text encoder without language: every text has a direction of its own."""

    dim = STAND_IN_DIM

    def _forward(self, texts: list[str]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(one_hot_vectors(texts)))


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

    def release(self) -> None:
        """Gives back the memory of the tower; a label set that is not kept would load it again."""
        vars(self).pop("tower", None)

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
        ModelError: an unknown encoder, a package or a file that is not there; at the first
            `encode`: weights that could not be fetched.
    """
    if config.encoder == STAND_IN:
        return StandInEncoder(config)
    if config.encoder == ONE_HOT:
        return OneHotEncoder(config)
    if config.encoder.startswith(PACKAGE):
        return PackageEncoder(config, device)
    if config.encoder.startswith(TABLE):
        return TableEncoder(config)
    if config.encoder.startswith(SENTENCE_PREFIX):
        return SentenceEncoder(config, device)
    return OpenClipEncoder(config, device)


def require_text_weights(config: TextConfig) -> None:
    """Makes sure that the weights of a text encoder can be had here, without loading CLIP's.

    Raises:
        ModelError: an unknown encoder, or weights that are neither here nor to be had.
    """
    if isinstance(build_text_encoder(config), OpenClipEncoder):
        require_open_clip_weights(config)


def asks_the_hub(config: TextConfig) -> bool:
    """Whether a text encoder needs a file of the hub: its weights, or another library's tokenizer.

    Raises:
        ModelError: an unknown encoder.
    """
    if config.encoder in (STAND_IN, ONE_HOT) or config.encoder.startswith((PACKAGE, TABLE)):
        return False
    if config.encoder.startswith(SENTENCE_PREFIX):
        return not Path(config.encoder.removeprefix(SENTENCE_PREFIX)).is_dir()
    return open_clip_asks_the_hub(config)
