"""A CLIP model of open_clip with small random weights, and with CLIP's own tokenizer."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from model.config import TextConfig

NAME, DIM = "lseg-tiny-clip", 32
SETTINGS = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_clip(folder: Path, **values) -> TextConfig:
    """Writes the weights below a folder; the configuration that names them."""
    settings = folder / "settings"
    settings.mkdir()
    (settings / f"{NAME}.json").write_text(json.dumps(SETTINGS))
    open_clip.add_model_config(settings)
    torch.manual_seed(0)
    weights = folder / "clip.safetensors"
    save_file(open_clip.create_model(NAME).state_dict(), weights)
    return TextConfig(encoder=NAME, pretrained=str(weights), **values)
