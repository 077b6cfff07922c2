"""The end of a run by a defect that one worker met while it wrote the state.

An error of that worker alone would have Ray start all of them anew, and each attempt meet it again.
"""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from model.errors import ModelError
from pipeline.errors import UserError
from pipeline.training.job import EarlyEnd


def ended_by(
    defect: Exception | None, device: torch.device, read: Callable[[str, Tensor], Any]
) -> EarlyEnd | None:
    """Says whether a worker met a defect, and how the run ends by it.

    Every worker calls it after the same steps, with what it has met itself; it costs one
    all-reduce and a host synchronisation, which `read` makes; see `Overhead`.
    """
    has_one = torch.tensor([defect is not None], dtype=torch.int64, device=device)
    dist.all_reduce(has_one)
    if not any(read("defects", has_one)):
        return None
    if isinstance(defect, UserError | ModelError):
        return EarlyEnd(failed=str(defect))
    text = "".join(traceback.format_exception(defect)) if defect else "of another worker"
    return EarlyEnd(defect=text)
