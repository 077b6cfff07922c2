"""The optimiser over the published parameter groups, and the learning rate of each step."""

import torch

from model.lseg import LSeg
from pipeline.training.config import TrainConfig


def build_optimizer(lseg: LSeg, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over the published parameter groups."""
    groups = lseg.parameter_groups(train.lr)
    if train.optimizer == "adamw":
        # Adam's step does not depend on the size of a gradient: the groups need no factor.
        groups = [{**group, "lr": train.lr} for group in groups]
        return torch.optim.AdamW(groups, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, momentum=train.momentum, weight_decay=train.weight_decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, train: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of `rate`, to be stepped once an optimiser step, skipped ones included."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, train))


def rate(step: int, train: TrainConfig) -> float:
    """Factor on the learning rates at a step: linear warm-up, then polynomial decay."""
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return warm * (1 - min(step, train.steps) / train.steps) ** train.poly_power
