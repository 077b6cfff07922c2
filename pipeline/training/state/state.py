"""The state of a training: what a checkpoint must hold, and what a skipped step restores."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.lseg import LSeg, build_lseg
from model.text import trained_tower
from pipeline.ray_internals import batch_norms, copy_tensors
from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.state.optimizer import build_optimizer, build_schedule
from pipeline.training.state.warm_start import build_warm, tower_at_start


@dataclass
class TrainingState:
    """The state of a run after some steps; the same on every worker."""

    lseg: LSeg
    """The network that is trained."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: AveragedModel | None = None
    """Moving average of the weights, if the run keeps one."""
    step: int = 0
    """Optimiser steps done."""
    order: list[int] = field(default_factory=list)
    """Digest of the samples of each step done; see `pipeline.training.state.order`."""
    owes_validation: bool = False
    """Whether a validation was due after this step and was left to who resumes the run."""

    @property
    def evaluated(self) -> LSeg:
        """The network to validate and to hand out: the average, if there is one."""
        return cast(LSeg, self.average.module) if self.average else self.lseg


def build_state(
    config: TrainMixConfig, embed_dim: int, device: torch.device, resumes: bool = False
) -> TrainingState:
    """The state of a run before its first step, the same on every worker.

    The weights of one that `resumes` will be replaced: those of `run.start_from` are not fetched.
    """
    torch.manual_seed(config.run.seed)
    if config.run.start_from:
        lseg = build_warm(config, embed_dim, resumes).to(device)
    else:
        lseg = build_lseg(config.model, embed_dim).to(device)
    if config.train.text != "frozen":
        lseg.text_tower = trained_tower(tower_at_start(config, resumes)).to(device)
    if config.train.precision == "fp64":
        lseg = lseg.double()
    optimizer = build_optimizer(lseg, config.train)
    schedule = build_schedule(optimizer, config.train)
    return TrainingState(lseg, optimizer, schedule, average_of(lseg, config.train))


def average_of(lseg: LSeg, train: TrainConfig) -> AveragedModel | None:
    """An exponential moving average of the weights; None where `train.ema_decay` is 0.

    Batch-norm statistics, which are averages already, are taken as they are.
    """
    if not train.ema_decay:
        return None
    average = AveragedModel(lseg, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    return average.requires_grad_(False)


class Statistics:
    """Batch-norm statistics before a step, to be put back when its activations were not finite.

    A skipped step leaves the weights alone, but its forward pass has already moved the running
    statistics, and one NaN in them would stay for ever.
    """

    def __init__(self, lseg: nn.Module) -> None:
        self._now: list[Tensor] = [
            buffer
            for module in batch_norms(lseg)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        self._kept = [buffer.clone() for buffer in self._now]

    def keep(self) -> None:
        """Remembers the statistics as they are."""
        if self._now:
            copy_tensors(self._kept, self._now)

    def put_back(self) -> None:
        """Restores what was remembered last."""
        if self._now:
            copy_tensors(self._now, self._kept)
