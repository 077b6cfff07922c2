"""The process of a training worker: its log, its threads, its kernels, and memory it has freed."""

import ctypes
import logging
import os
import sys
import warnings
from typing import Any

import ray.train
import ray.train.torch
import torch

from model.errors import ModelError
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.errors import UserError
from pipeline.log_lines import here, log_as
from pipeline.ray_internals import worker_loggers
from pipeline.training.config import TrainMixConfig
from pipeline.training.worker.gpu_driver import require_driver

MEMORY_EVERY = 50
"""Steps after which what was freed is given back; the next step then asks for new pages."""


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keeps back the traceback of what the driver prints in one line."""
    return not isinstance(sys.exc_info()[1], UserError | ModelError)


def prepare_process(config: TrainMixConfig, stop: Any) -> torch.device:
    """Sets up a worker's log, threads and kernels; returns its device.

    The `StopSignal`, if there is one, learns where the worker is.
    """
    rank = ray.train.get_context().get_world_rank()
    if stop is not None:
        node = ray.get_runtime_context().get_node_id()[:8]
        stop.place.remote(rank, f"{here()} (node {node}, process {os.getpid()})")
    _log_to_driver(rank)
    if config.cluster.use_gpu:
        require_driver()
    use_prefetched()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        share = max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size())
        torch.set_num_threads(config.cluster.threads_per_worker or share)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.use_deterministic_algorithms(config.train.deterministic)
    return device


def give_back_memory() -> None:
    """Gives what this process has freed back to the kernel, where the C library can do so.

    A step on the CPU takes and frees arrays of other sizes than the one before, and what glibc
    keeps between them grows for thousands of steps: the worker of the recipe for photographs grew
    from 1.3 to 2.1 GiB within 950 steps, and stays at 1.3 GiB with this.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _log_to_driver(rank: int) -> None:
    """Sends a worker's own log lines to stdout, which Ray passes on, and of Ray's only warnings."""
    log_as(f"worker {rank}")
    logging.getLogger().setLevel(logging.WARNING)
    for logger in worker_loggers():
        logger.addFilter(_is_no_mistake)
    # Batches arrive as read-only views into Ray's object store; nothing here writes into them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
