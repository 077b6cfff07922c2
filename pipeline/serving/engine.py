"""Answers calls with one network: images of one size and one question go through it together.

Calls wait in one queue of bounded length, and beyond it are sent away (`Busy`). An image is decoded
and shrunk to what the network takes as soon as it comes, so that what waits is small. One thread
asks the network; whatever waits for the same question at the same size when it turns to the next
call goes along, without waiting for more.

Texts that are new to the encoder go through it in a thread of their own: a call with many of them
takes no time from calls whose texts are kept.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np

from model.errors import ModelError
from model.sliding import window_grid
from pipeline.inference.config import Other
from pipeline.inference.served_limits import TooLarge
from pipeline.inference.served_network import Question, ServedNetwork
from pipeline.serving.answers import array, narrow, segmented
from pipeline.serving.calls import Answer, Busy, Call, TooLate
from pipeline.serving.champion import Loaded
from pipeline.serving.tally import TALLY

logger = logging.getLogger(__name__)

MAX_BATCH_MPX = 24
"""Megapixels of the results of one batch."""
MAX_ARRAY_MIB = 256
"""Size of an answer that is an array."""
_THREADS = 2
"""Images that are decoded, and answers that are written, at once."""


@dataclass(eq=False)
class _Job:
    """A call on its way through the network."""

    call: Call
    loaded: Loaded
    question: Question
    seen: np.ndarray
    """(H, W, 3) uint8 RGB, as the network takes it."""
    size: tuple[int, int]
    """Height and width of the image."""
    ends: float
    found: Future[np.ndarray] = field(default_factory=Future)

    def goes_with(self, other: "_Job") -> bool:
        """Whether one batch can hold both."""
        return (
            self.loaded is other.loaded
            and self.question == other.question
            and (self.size, self.seen.shape) == (other.size, other.seen.shape)
            and self.is_ids
            and other.is_ids
        )

    @property
    def is_ids(self) -> bool:
        """Whether it asks for label ids, rather than for an array of its own."""
        return self.call.kind == "segment" and self.call.answer != "probabilities"


class Engine:
    """Answers calls.

    Args:
        current: Gives the network of this moment.
        max_waiting: Calls that are not answered yet; those beyond are `Busy`.
        max_batch: Images of one batch.
    """

    def __init__(
        self, current: Callable[[], Loaded], max_waiting: int = 32, max_batch: int = 8
    ) -> None:
        self._current, self._max_waiting, self._max_batch = current, max_waiting, max_batch
        self.waiting = 0
        """Calls that are not answered yet."""
        self._jobs: list[_Job] = []
        self._there = threading.Condition()
        self._is_closed = False
        self._hooked: WeakSet[ServedNetwork] = WeakSet()
        self._ends = float("inf")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="calls")
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._worker = threading.Thread(target=self._work, daemon=True, name="network")
        self._worker.start()

    async def ask(self, call: Call) -> Answer:
        """Answers a call.

        Raises:
            Busy: Too many wait.
            TooLate: Its time is over.
            UserError: What it asks is not allowed.
        """
        if self.waiting >= self._max_waiting:
            raise Busy
        self.waiting += 1
        try:
            return await self._ask(call)
        finally:
            self.waiting -= 1

    async def _ask(self, call: Call) -> Answer:
        loop, loaded = asyncio.get_running_loop(), self._current()
        ends = time.monotonic() + loaded.network.limits.seconds
        prepare = partial(self._prepared, call, loaded, ends)
        job = await _until(ends, loop.run_in_executor(self._pool, prepare))
        if job.call.kind != "embed" and job.question.vectors is None:
            encode = partial(_encoded, job)
            job.question = await _until(ends, loop.run_in_executor(self._texts, encode))
        with self._there:
            self._jobs.append(job)
            self._there.notify()
        found = await _until(ends, asyncio.wrap_future(job.found))
        return await loop.run_in_executor(self._pool, _written, job, found)

    @property
    def is_alive(self) -> bool:
        """Whether calls are worked on."""
        return self._worker.is_alive()

    def close(self) -> None:
        """Ends the threads; what waits is not answered."""
        with self._there:
            self._is_closed = True
            self._there.notify()
        self._worker.join(timeout=10)
        for pool in (self._pool, self._texts):
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepared(self, call: Call, loaded: Loaded, ends: float) -> _Job:
        """Decodes the image of a call, and checks what it asks; no text is encoded yet."""
        network = loaded.network
        _check_time(ends)
        if call.kind == "embed":
            question = Question((), Other(), network.sliding(call.asked))
        else:
            question = network.read(call.asked)
        network.check_mib("image", call.image)
        network.size("image", call.image)
        image = network.decode("image", call.image)
        size = (image.shape[0], image.shape[1])
        if call.answer == "probabilities":
            rows = len(question.labels) + bool(question.other.texts)
            _check_array(rows * size[0] * size[1] * 2, "fewer labels, or a smaller image")
        seen = np.ascontiguousarray(network.see(image, question))
        if call.kind == "embed":
            grid = window_grid((seen.shape[0], seen.shape[1]), 1.0, question.sliding)
            vectors = -(-grid.height // 2) * -(-grid.width // 2)
            _check_array(network.lseg.embed_dim * vectors * 2, "a smaller base_px")
        self._watch(network)
        kept = Call(call.kind, b"", call.asked, call.answer, call.with_mask)
        return _Job(kept, loaded, question, seen, size, ends)

    def _watch(self, network: ServedNetwork) -> None:
        """Ends a batch whose calls are all too late; the forward pass comes most often."""
        with self._there:
            if network in self._hooked:
                return
            self._hooked.add(network)
        network.lseg.backbone.register_forward_pre_hook(self._check)

    def _check(self, *_: Any) -> None:
        if threading.current_thread() is self._worker and time.monotonic() > self._ends:
            raise TooLate

    def _work(self) -> None:
        while batch := self._next_batch():
            began = time.monotonic()
            try:
                self._ends = max(job.ends for job in batch)
                found = _asked(batch)
            except BaseException as error:
                if not isinstance(error, TooLate | ModelError | TooLarge):
                    logger.exception("a batch of %d failed", len(batch))
                for job in batch:
                    job.found.set_exception(error)
                continue
            TALLY.add("busy_seconds", time.monotonic() - began)
            TALLY.add("batches")
            TALLY.add("images", len(batch))
            for job, one in zip(batch, found, strict=True):
                job.found.set_result(one)
            # Nothing of it stays while the next one is waited for.
            del batch, found, job, one

    def _next_batch(self) -> list[_Job]:
        """The oldest call and those that can go with it; empty at the end."""
        with self._there:
            while True:
                now = time.monotonic()
                # Calls that nobody waits for any more need no work.
                self._jobs = [j for j in self._jobs if j.ends > now and not j.found.cancelled()]
                if self._jobs or self._is_closed:
                    break
                self._there.wait()
            if self._is_closed:
                return []
            first = self._jobs[0]
            mpx = first.size[0] * first.size[1] / 1e6
            most = max(1, min(self._max_batch, int(MAX_BATCH_MPX / mpx)))
            mates = [job for job in self._jobs if job is first or job.goes_with(first)][:most]
            # A call whose client has left cannot be cancelled from here on.
            chosen = [job for job in mates if job.found.set_running_or_notify_cancel()]
            gone = set(map(id, mates))
            self._jobs = [job for job in self._jobs if id(job) not in gone]
            if chosen:
                return chosen
        return self._next_batch()


async def _until(ends: float, work: Awaitable[Any]) -> Any:
    """Waits for work as long as the call has time; what has not begun then is not begun.

    Raises:
        TooLate: It has none left.
    """
    try:
        return await asyncio.wait_for(work, max(0.0, ends - time.monotonic()))
    except TimeoutError:
        raise TooLate from None


def _check_time(ends: float) -> None:
    if time.monotonic() > ends:
        raise TooLate


def _encoded(job: _Job) -> Question:
    """The question of a call with its vectors; a call that is too late ends between two chunks."""
    check = partial(_check_time, job.ends)
    check()
    return job.loaded.network.encoded(job.question, check)


def _asked(batch: list[_Job]) -> list[np.ndarray]:
    """What the network answers to calls that go together."""
    first = batch[0]
    network, question = first.loaded.network, first.question
    if first.call.kind == "embed":
        return [network.pixel_vectors(first.seen, question.sliding)]
    if not first.is_ids:
        return [network.probabilities(first.seen, first.size, question)]
    seen = np.stack([job.seen for job in batch])
    ids = network.label_ids(seen, first.size, question)
    return list(narrow(ids, len(question.labels)))


def _written(job: _Job, found: np.ndarray) -> Answer:
    if job.is_ids:
        return segmented(job.call, job.question, found, job.loaded.name)
    return array(found, job.loaded.name)


def _check_array(num_bytes: int, remedy: str) -> None:
    if num_bytes > MAX_ARRAY_MIB * 2**20:
        raise TooLarge(
            f"the answer would have {num_bytes / 2**20:.0f} MiB: must be at most "
            f"{MAX_ARRAY_MIB}: ask for {remedy}"
        )
