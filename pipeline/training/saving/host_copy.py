"""Copies of a state in host memory, so that a checkpoint is written while training goes on.

The memory is taken once and filled anew for each checkpoint: there is one copy at a time, and who
fills it waits until the one before is written. On a GPU it is pinned: the device copies into it
between two steps, and no step waits for the copy to arrive.
"""

import copy
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Buffers for the tensors of one state."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, content: Any, name: str) -> Any:
        """Copies nested dicts and lists of tensors and plain values.

        Args:
            content: What to copy, on any device.
            name: Name of the content, which has buffers of its own.

        Returns:
            The same with other tensors, whose values are there after `wait`.
        """
        copied = self._copied(content, name)
        if torch.cuda.is_initialized():
            # Queued behind the copies: later steps, which change the state, come after both.
            arrived = torch.cuda.Event()
            arrived.record()
            self._arrived = arrived  # Last: one that is not recorded yet makes nobody wait.
        return copied

    def wait(self) -> None:
        """Waits until all that was taken has arrived; for the thread that writes it."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _copied(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            buffer = self._buffers.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                buffer = torch.empty_like(
                    value, device="cpu", pin_memory=value.is_cuda, requires_grad=False
                )
                self._buffers[name] = buffer
            return buffer.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copied(inner, f"{name}/{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(v, f"{name}/{at}") for at, v in enumerate(value))
        return copy.deepcopy(value)
