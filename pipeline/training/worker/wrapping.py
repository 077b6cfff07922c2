"""From a network to what a training step calls: memory order, all workers, compiled."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.lseg import LSeg
from pipeline.training.config import TrainConfig
from pipeline.training.worker.batchnorm import synchronise


def wrap(lseg: LSeg, train: TrainConfig, device: torch.device, world: int) -> nn.Module:
    """Prepares a network for training, in place, and wraps it.

    Names and values of parameters and buffers stay as they are: checkpoints and validation use
    `lseg` itself.

    With more than one worker their process group must exist.

    Returns:
        A module that is called as `lseg` is; with more than one worker it has `no_sync`.
    """
    if train.channels_last == "on" or (train.channels_last == "auto" and device.type == "cuda"):
        lseg.channels_last()
    if train.sync_batchnorm and world > 1:
        synchronise(lseg, device)
    wrapped = DistributedDataParallel(lseg) if world > 1 else lseg
    if train.compile:
        # DDP inside: the compiler then cuts its graph where DDP's gradient buckets end, and
        # workers exchange one while the next is computed.
        return cast(nn.Module, cast(Any, torch.compile(wrapped)))
    return wrapped
