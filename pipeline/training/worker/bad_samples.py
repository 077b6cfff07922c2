"""Samples that could not be read: counted over all workers, logged, and limited."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist

logger = logging.getLogger(__name__)

MAX_TOLD = 50
"""Log lines of one worker about bad samples; counting has no limit."""
FEW = 3
"""So many bad samples say nothing about the share yet, unless none is allowed."""


class BadSamples:
    """Counts the bad samples among those that this worker got."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._num_read, self._num_bad, self._last = 0, 0, ""

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the rows of a batch of the ingest, and logs the bad ones with their reason."""
        self._num_read += len(batch["bad"])
        if not batch["bad"].any():
            return
        for t, problem in zip(batch["t"].tolist(), batch["problem"].tolist(), strict=True):
            if problem:
                self._num_bad += 1
                self._last = problem
                if self._num_bad <= MAX_TOLD:
                    logger.warning("left out row %d of the stream: %s", t, problem)

    def totals(
        self, device: torch.device, read: Callable[[str, torch.Tensor], Any]
    ) -> tuple[int, str]:
        """Over all workers since this attempt began; every worker must call it.

        Args:
            device: Where the workers exchange.
            read: Brings a tensor to the host; see `Overhead`.

        Returns:
            How many, and why the run must end if they are too many, else an empty string.
        """
        counts = torch.tensor([self._num_read, self._num_bad], device=device)
        dist.all_reduce(counts)
        num_read, num_bad = read("bad samples", counts)
        if num_bad <= (max(FEW, self._max_share * num_read) if self._max_share else 0):
            return num_bad, ""
        return num_bad, (
            f"data.max_bad_share={self._max_share}: {num_bad} of {num_read} samples could not "
            "be read, which the log names with shard, key and reason"
            + (f"; the last of worker {dist.get_rank()}: {self._last}" if self._last else "")
            + ": repair the shards, or allow a larger share"
        )
