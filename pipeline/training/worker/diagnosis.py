"""Diagnoses a run whose gradients are no longer finite."""

import math

import torch

from pipeline.training.config import TrainMixConfig
from pipeline.training.state.order import StreamOrder
from pipeline.training.state.state import TrainingState

_SHOWN = 8
"""Samples that are named."""


def diagnose(
    state: TrainingState,
    config: TrainMixConfig,
    order: StreamOrder,
    loss: float,
    norm: float,
    in_a_row: int,
) -> str:
    """Describes where the numbers break, and what helps.

    The state has the gradients of the last skipped step; loss (a mean) and norm are of that step.
    """
    named = list(state.lseg.named_parameters())
    bad_weights = [name for name, p in named if not torch.isfinite(p).all()]
    bad_gradients = [
        name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    train, rows = config.train, order.rows(state.step)
    if bad_weights:
        cause = (
            f"{len(bad_weights)} weights are not finite themselves, the first is {bad_weights[0]}: "
            "they were damaged before; resume from an older checkpoint"
        )
    elif math.isfinite(loss):
        cause = (
            "the loss is finite but the gradients overflow: lower train.lr, set train.clip_norm, "
            "or train.precision=fp32"
        )
    else:
        cause = (
            "the forward pass overflows: lower train.lr, lengthen train.warmup_steps, set "
            "train.clip_norm, or train.precision=fp32"
        )
    samples = ", ".join(order.name_of(row) for row in rows[:_SHOWN])
    if len(rows) > _SHOWN:
        samples += f" and {len(rows) - _SHOWN} more"
    return (
        f"train.max_nonfinite_steps={train.max_nonfinite_steps}: {in_a_row} steps in a row "
        f"without a finite gradient, the last is step {state.step + 1}: {cause}. "
        f"Loss {loss}, gradient norm {norm}, learning rate "
        f"{state.schedule.get_last_lr()[0]:g}, precision {train.precision}; "
        f"{len(bad_gradients)} of {len(named)} gradients are not finite"
        + (f", the first is {bad_gradients[0]}" if bad_gradients else "")
        + f"; rows {rows[0].t} to {rows[-1].t} of the stream: {samples}. The same command with the "
        "change goes on from the last checkpoint, which is from before step "
        f"{state.step - in_a_row + 2}; unchanged it would meet the same samples"
    )
