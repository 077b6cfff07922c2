"""The text tower beside the network: text in, vectors out, so that words change after the export.

Written as `docs/examples/embed_text_onnx.py` reads it, and compared with the encoder on the label
set in the same way: tokens by the file of the tokenizer, vectors by the file of the tower, and the
mean over the templates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from model.text import TextEncoder
from model.text.graph import text_graph
from model.text.templates import templates_of
from pipeline.errors import UserError
from pipeline.inference.export.config import TOLERANCE
from pipeline.inference.export.graph import exported
from pipeline.inference.export.stored import Run, open_program, write_program

TOKENS, VECTORS = "tokens", "vectors"
"""Names of the input and of the output."""
TOWER = {"onnx": "text.onnx", "torch": "text.pt2"}
TOKENIZER = "tokenizer.json"


def write_text_tower(
    form: str, encoder: TextEncoder, folder: Path, labels: Sequence[str], text_KC: np.ndarray
) -> dict[str, Any]:
    """Writes a text tower and its tokenizer, and compares them with the encoder.

    Args:
        form: `onnx` or `torch`.
        encoder: The encoder of a checkpoint.
        folder: Receives the files.
        labels: The label set.
        text_KC: Its vectors by the encoder.

    Returns:
        What `export.json` says of the files.

    Raises:
        ModelError: The encoder has no tower that can be written.
        UserError: The written tower gives other vectors.
    """
    config = encoder.config
    if config.synonyms != "none" or config.channels:
        raise UserError(
            f"text_tower: the checkpoint's text.synonyms is {config.synonyms} and text.channels is "
            f"{config.channels}: the tower is written for none and false alone: leave it out"
        )
    graph = text_graph(encoder)
    (folder / TOKENIZER).write_text(graph.tokenizer, encoding="utf-8")
    # 9: no width of anything in it, which PyTorch would take for the same size.
    tokens = torch.full((2, graph.length or 9), 320)
    free = {0: Dim.DYNAMIC} if graph.length else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    program = exported(graph.module, (tokens,), {TOKENS: free})
    path = folder / TOWER[form]
    write_program(program, path, (TOKENS,), (VECTORS,))
    templates = templates_of(config.templates)
    _require_equal(open_program(path), folder, labels, templates, text_KC)
    inputs = {TOKENS: ["texts", graph.length or "tokens", "int64"]}
    return {
        "tower": path.name,
        "tokenizer": TOKENIZER,
        "templates": templates,
        "inputs": inputs,
        "outputs": {VECTORS: ["texts", text_KC.shape[1], "float32, of length 1"]},
    }


def _require_equal(
    run: Run,
    folder: Path,
    labels: Sequence[str],
    templates: Sequence[str],
    text_KC: np.ndarray,
) -> None:
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    tokenizer: Any = Tokenizer.from_file(str(folder / TOKENIZER))
    for label, expected in zip(labels, text_KC, strict=True):
        texts = [template.replace("{}", label) for template in templates]
        vectors = run(np.array([each.ids for each in tokenizer.encode_batch(texts)]))
        mean = vectors.mean(0)
        difference = np.abs(mean / np.linalg.norm(mean) - expected).max()
        if not difference <= TOLERANCE:  # Also where it is none.
            raise UserError(
                f"text_tower: the vector of {label!r} is {difference:.2g} from the encoder's, and "
                f"may be {TOLERANCE}: leave the label out, or the tower, and report the label"
            )
