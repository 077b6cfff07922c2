"""Batch normalisation over the samples of all workers, on GPUs and on CPUs.

torch's SyncBatchNorm runs on GPUs only. Without it a run on CPUs would depend on the number of
workers, so this module brings the same for gloo.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduced gradient."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the global batch."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W)."""
        if not self.training or dist.get_world_size() == 1:
            return super().forward(input)
        count = input.numel() // input.shape[1]
        # In float64: the variance is a difference of sums, whose rounding would depend on how the
        # batch is dealt to the workers, and training amplifies it.
        sums = [part.sum((0, 2, 3), dtype=torch.float64) for part in (input, input.square())]
        local = torch.cat([*sums, sums[0].new_tensor([float(count)])])
        total: Any = _SumOverWorkers.apply(local)
        channels, num = input.shape[1], total[-1].detach()
        mean = total[:channels] / num
        variance = total[channels : 2 * channels] / num - mean.square()
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 0.1
            unbiased = variance.detach() * num / (num - 1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        mean = mean.to(input.dtype)
        scale = torch.rsqrt(variance.clamp_min(0) + self.eps).to(input.dtype)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return input * scale[:, None, None] + shift[:, None, None]


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes every batch norm of a model use the statistics of all workers.

    Parameters, buffers and their names stay as they are.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
    return model
