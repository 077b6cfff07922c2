"""Batches as tensors on the worker's device; on a GPU copied ahead, while it computes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

TENSORS = ("image", "label")


def on_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Turns the images of batches into tensors on a device.

    On a CPU they stay where they are. On a GPU one thread takes the next batch, copies it into
    pinned memory and from there, on a stream of its own, to the device, while the step before runs.

    Args:
        batches: Batches of the ingest: `image` (B, H, W, 3) and `label` (B, H, W), uint8.
        device: Where to.

    Yields:
        The batches with `image` and `label` as tensors; the rest as it was.
    """
    if device.type != "cuda":
        for batch in batches:
            # Views of Ray's read-only memory; nothing here writes into them.
            yield batch | {name: torch.from_numpy(batch[name]) for name in TENSORS}
        return
    source, stream = iter(batches), torch.cuda.Stream(device)

    def copied() -> tuple[dict[str, Any], torch.cuda.Event] | None:
        batch = next(source, None)
        if batch is None:
            return None
        copies: dict[str, Tensor] = {}
        with torch.cuda.stream(stream):
            for name in TENSORS:
                pinned = torch.from_numpy(batch[name]).pin_memory()
                copies[name] = pinned.to(device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        return batch | copies, done

    # Left at device 0, the thread would open a context of some 500 MB there for each worker.
    here = {"initializer": torch.cuda.set_device, "initargs": (stream.device,)}
    pool = ThreadPoolExecutor(1, thread_name_prefix="device-copy", **here)
    try:
        ahead = pool.submit(copied)
        while (found := ahead.result()) is not None:
            batch, done = found
            ahead = pool.submit(copied)
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for name in TENSORS:
                # Its memory belongs to the other stream's pool, which must not reuse it too early.
                batch[name].record_stream(current)
            yield batch
    finally:
        # A run that ends early must not wait for a batch that nobody will take.
        pool.shutdown(wait=False, cancel_futures=True)
