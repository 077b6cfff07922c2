"""From a network to what a training step calls: memory order, all workers, compiled."""

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from model.lseg import LSeg
from pipeline.ray_internals import leave_to_others
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
    wrapped = _on_all_workers(lseg, train) if world > 1 else lseg
    if train.compile:
        # DDP inside: the compiler then cuts its graph where DDP's gradient buckets end, and
        # workers exchange one while the next is computed.
        return cast(nn.Module, cast(Any, torch.compile(wrapped)))
    return wrapped


def _on_all_workers(lseg: LSeg, train: TrainConfig) -> DistributedDataParallel:
    """The network with its gradients averaged over the workers; see `StepText` for its text."""
    if lseg.text_tower is not None:
        names = [f"text_tower.{name}" for name, _ in lseg.text_tower.named_parameters()]
        leave_to_others(lseg, names)
    network = DistributedDataParallel(
        lseg,
        # Gradients lie in the buffers of the exchange: one copy less of them in memory and time.
        gradient_as_bucket_view=True,
        # Every step has the same graph. Passes without an exchange (`no_sync`) are another one,
        # and the compiler cuts its graph itself, which torch allows for a changing graph alone.
        static_graph=train.accumulate == 1 and not train.compile,
    )
    if train.gradient_dtype == "bf16":
        network.register_comm_hook(None, bf16_compress_hook)
    return network


def autocast(precision: str, device: torch.device) -> Any:
    """The context of forward passes in a precision of `TrainConfig`."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
