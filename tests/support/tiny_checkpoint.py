"""A tiny network with random weights, stored as a training stores one."""

from pathlib import Path

import torch

from model.checkpoint import save_checkpoint
from model.lseg import build_lseg
from tests.pipeline.evaluation.conftest import spread_predictions
from tests.support.mini_shards import tiny_model

TRAINED = ("wall", "traffic light")
"""The texts that it was trained on."""


def tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny network whose answers vary over an image."""
    torch.manual_seed(seed)
    lseg = build_lseg(tiny_model(), 512)
    spread_predictions(lseg)
    extra = {"data": {"augment": {"base_px": 60, "crop_px": 48}}}
    save_checkpoint(folder, lseg, ("wall", "traffic_light"), extra, texts=TRAINED)
    return folder
