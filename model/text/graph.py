"""A text tower as one graph and its tokenizer as a file, for programs without this project.

The graph takes numbers of tokens and gives unit vectors. The tokenizer is a `tokenizer.json` for
Hugging Face's library `tokenizers`, which needs no PyTorch. CLIP's towers with OpenAI's byte pairs
and the sentence encoders of packages have both.

Shapes: N texts, T tokens, C embedding.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from model.errors import ModelError
from model.text.encoder import TextEncoder
from model.text.encoders import OpenClipEncoder
from model.text.package_tower import BertMean, PackageEncoder

PADDING = 0
"""Token that fills shorter texts: BERT's own, and the one that open_clip's tokenizer takes."""
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""What OpenAI's tokenizer for CLIP takes apart before it looks for byte pairs."""


@dataclass(frozen=True, kw_only=True)
class TextGraph:
    """A text tower for export."""

    module: nn.Module
    """Tokens (N, T) int64 to unit vectors (N, C) float32."""
    tokenizer: str
    """The content of `tokenizer.json`; it pads with PADDING and cuts texts that are too long."""
    length: int
    """Tokens T of every text; 0 where it may be any."""


def text_graph(encoder: TextEncoder) -> TextGraph:
    """The graph and the tokenizer of a text encoder.

    Raises:
        ModelError: it has no tower, or a tokenizer of another kind, or a package is missing.
    """
    where = f"text.encoder={encoder.config.encoder}"
    if isinstance(encoder, PackageEncoder):
        tokenizer = encoder.padding_tokenizer(PADDING)
        return TextGraph(module=_BertGraph(encoder.tower), tokenizer=tokenizer, length=0)
    if isinstance(encoder, OpenClipEncoder) and hasattr(encoder.tokenizer, "bpe_ranks"):
        return TextGraph(
            module=_ClipGraph(encoder.tower),
            tokenizer=_byte_pairs(encoder.tokenizer, where),
            length=encoder.max_tokens,
        )
    raise ModelError(
        f"{where}: cannot be written as a text tower: must be a CLIP model of open_clip with "
        "OpenAI's tokenizer, or a package's sentence encoder: leave the tower out, and make the "
        "vectors of other words by another export with them as labels"
    )


class _ClipGraph(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = cast(Any, self.tower).encode_text(tokens)
        return functional.normalize(vectors.float(), dim=1)


class _BertGraph(nn.Module):
    def __init__(self, tower: BertMean) -> None:
        super().__init__()
        self._tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self._tower.encode(tokens, tokens != PADDING), dim=1)


def _byte_pairs(simple: Any, where: str) -> str:
    """open_clip's tokenizer of OpenAI's byte pairs as a `tokenizer.json`.

    It knows nothing of HTML entities and of ftfy's repairs, which open_clip makes before.
    """
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise ModelError(
            f"{where}: needs the package tokenizers: install the extra that brings it "
            "(`pip install -c constraints.txt '.[export]'`)"
        ) from error
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    start, end = (
        next(name for name, number in simple.encoder.items() if number == special)
        for special in (simple.sot_token_id, simple.eot_token_id)
    )
    pairs = models.BPE(vocab=simple.encoder, merges=merges, end_of_word_suffix="</w>")
    tokenizer: Any = Tokenizer(pairs)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [(start, simple.sot_token_id), (end, simple.eot_token_id)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=special
    )
    length = int(simple.context_length)
    tokenizer.enable_truncation(length)
    name = next(name for name, number in simple.encoder.items() if number == PADDING)
    tokenizer.enable_padding(length=length, pad_id=PADDING, pad_token=name)
    return tokenizer.to_str()
