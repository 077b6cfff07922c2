"""The optimiser over its parameter groups, and the learning rate of each step."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.lseg import LSeg
from model.text import TrainedTower
from pipeline.errors import UserError
from pipeline.training.config import TrainConfig, read_rate

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""Normalisation layers; timm's own derive from these."""
JOINT = "attn.in_proj_weight"
"""End of the names of open_clip's weights of queries, keys and values in one."""


def build_optimizer(lseg: LSeg, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over the published parameter groups, as `train` divides them further.

    What is not to train is frozen here: before the network is wrapped for several workers.

    Raises:
        UserError: A pattern of `train.rates` matches nothing, or nothing is left to train.
    """
    groups = lseg.parameter_groups(train.lr)
    if train.optimizer == "adamw":
        # Adam's step does not depend on the size of a gradient: the groups need no factor.
        groups = [{**group, "lr": train.lr} for group in groups]
    freeze_backbone(lseg, train)
    if lseg.text_tower is not None:
        freeze_text(lseg.text_tower, lseg.config.text.encoder)
    if (
        train.rates
        or not train.decay_norms
        or train.backbone != "all"
        or lseg.text_tower is not None
    ):
        groups = list(_divided(lseg, groups, train))
    lseg.train(lseg.training)  # What is frozen now takes no part in it.
    if not groups:
        raise UserError(
            f"train.rates={list(train.rates)}: must leave something to train: raise a factor "
            "above 0"
        )
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, momentum=train.momentum, weight_decay=train.weight_decay)


def freeze_backbone(lseg: LSeg, train: TrainConfig) -> None:
    """Freezes the backbone's weights that `train.backbone` does not name.

    Raises:
        UserError: It has no attention.
    """
    if train.backbone == "all":
        return
    trained = 0
    for name, parameter in lseg.backbone.named_parameters():
        if train.backbone == "attention-qv" and re.search(
            r"attn\.(qkv|q_proj|v_proj)\.weight$", name
        ):
            trained += 1
            if "qkv" in name:
                parameter.register_hook(_without_keys)
        else:
            parameter.requires_grad_(False)
    if train.backbone == "attention-qv" and not trained:
        raise UserError(
            f"train.backbone=attention-qv: {lseg.config.backbone.name} has no attention with "
            "queries and values: set it to all or none"
        )


def freeze_text(tower: TrainedTower, encoder: str) -> None:
    """Freezes a text tower that is trained, but for the queries and values of its attention.

    Args:
        tower: The tower.
        encoder: Its name, for messages.

    Raises:
        UserError: It has no attention of the usual form.
    """
    tower.requires_grad_(False)
    trained = [weight for name, weight in tower.named_parameters() if name.endswith(JOINT)]
    if not trained:
        raise UserError(
            f"train.text=attention-qv: the text tower of {encoder} has no attention with queries "
            "and values: set it to frozen"
        )
    for weight in trained:
        weight.requires_grad_(True).register_hook(_without_keys)


def _without_keys(grad: Tensor) -> Tensor:
    """The gradient of the joint weight of queries, keys and values, 0 for the keys."""
    third = len(grad) // 3
    grad = grad.clone()
    grad[third : 2 * third] = 0
    return grad


def _divided(
    lseg: LSeg, groups: list[dict[str, Any]], train: TrainConfig
) -> Iterator[dict[str, Any]]:
    """Divides groups by `train.rates`, and by who has the weight penalty."""
    norms = {
        parameter
        for module in lseg.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    names = {p: name for name, p in lseg.named_parameters() if p.requires_grad}
    rates = [read_rate(text) for text in train.rates]
    for pattern, factor in rates:
        if not any(re.search(pattern, name) for name in names.values()):
            beginnings = ", ".join(sorted({name.split(".")[0] for name in names.values()}))
            raise UserError(
                f"train.rates={pattern}={factor:g}: is found in no weight that is trained; their "
                f"names begin with {beginnings}"
            )
    for group in groups:
        parts: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if not (name := names.get(parameter)):
                continue
            factor = next((f for p, f in rates if re.search(p, name)), None)
            if factor == 0:
                parameter.requires_grad_(False)
                continue
            # A joint weight's keys have no gradient, and may not shrink either.
            joint = name.startswith("text_tower.") or (
                train.backbone == "attention-qv" and name.startswith("backbone.")
            )
            decays = not joint and (train.decay_norms or parameter not in norms)
            parts.setdefault((factor, decays), []).append(parameter)
        for (factor, decays), parameters in parts.items():
            divided = {**group, "params": parameters}
            if factor is not None:
                divided["lr"] = factor * train.lr
            yield divided if decays else {**divided, "weight_decay": 0.0}


def build_schedule(
    optimizer: torch.optim.Optimizer, train: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of `rate`, to be stepped once an optimiser step, skipped ones included."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, train))


def rate(step: int, train: TrainConfig) -> float:
    """Factor on the learning rates at a step: linear warm-up, then decay by the schedule."""
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    done = min(step, train.steps) / train.steps
    if train.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    return warm * (1 - done) ** train.poly_power
