"""Spreads the pictures of an evaluation over Ray workers, and adds up what they count, exactly.

Pictures are cut into chunks that do not depend on the number of workers. What a chunk counts is
saved below `<out>/partial/<fingerprint>/` when it is done, so that an evaluation that was killed
goes on with the chunks that are missing. The fingerprint binds the counts to the checkpoint's
bytes, the protocol and the pictures. Counts are integers: their sum is exact in any order, and
every picture is in exactly one chunk.
"""

import json
import logging
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import ray.exceptions
import torch

from model.checkpoint import local
from model.errors import ModelError
from pipeline.checkpoints.fingerprint import checkpoint_fingerprint
from pipeline.checkpoints.resolvers import worker_runtime_env
from pipeline.errors import UserError
from pipeline.evaluation.config import WorkersConfig
from pipeline.evaluation.items import digest
from pipeline.evaluation.scoring import Counts, Part, Scorer
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes when the same inputs would be counted otherwise."""

LOG_EVERY_S = 30.0

_DAMAGED = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What `Counts.from_bytes` raises over bytes that are no counts."""


@dataclass(frozen=True)
class Chunk:
    """Some pictures of a part, counted by one call."""

    part: int
    positions: tuple[int, ...]
    path: str
    """Where its counts are kept, relative to the evaluation's folder."""


class _Worker:
    """The actor: a Scorer with its threads and device set."""

    def __init__(self, checkpoint: str, workers: WorkersConfig, precision: str) -> None:
        self._checkpoint, self._workers, self._precision = checkpoint, workers, precision
        self._scorer: Scorer | None = None

    def _ready(self, parts: list[Any]) -> Scorer:
        """The scorer, made at the first call; `parts` holds a reference to the parts."""
        if self._scorer is None:
            workers = self._workers
            torch.set_num_threads(workers.threads)
            device = torch.device("cuda" if workers.use_gpu else "cpu")
            self._scorer = Scorer(
                self._checkpoint, ray.get(parts[0]), device, workers.batch_images, self._precision
            )
        return self._scorer

    def score(self, parts: list[Any], part: int, positions: Sequence[int]) -> bytes | str:
        """Counts of a chunk as bytes; a user's mistake as its message."""
        try:
            return self._ready(parts).score(part, positions).to_bytes()
        except (
            UserError,
            ModelError,
            FileNotFoundError,
        ) as error:  # As a value: Ray would wrap it.
            return str(error)

    def example(self, parts: list[Any], part: int, position: int) -> Any:
        """See `Scorer.example`."""
        return self._ready(parts).example(part, position)


class Runner:
    """The workers of one evaluation; a context manager.

    Args:
        checkpoint: A folder or URI that every worker can reach.
        parts: What to score.
        workers: How many, and with what; see `resolve_workers`.
        precision: Of the forward pass.
        out: Folder of the evaluation.
        max_bad_share: Ends the evaluation when more pictures than this do not decode.
    """

    def __init__(
        self,
        checkpoint: str,
        parts: Sequence[Part],
        workers: WorkersConfig,
        precision: str,
        out: str,
        max_bad_share: float,
    ) -> None:
        self._checkpoint, self._parts, self._workers = checkpoint, list(parts), workers
        self._precision, self._max_bad_share = precision, max_bad_share
        self._storage: Storage = open_storage(out)
        self.fingerprint = fingerprint(checkpoint, parts, workers, precision)
        """Of all that the counts depend on."""
        self._actors: list[Any] = []
        self._parts_reference: list[Any] = []

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def chunks(self) -> list[Chunk]:
        """All chunks of all parts, in order."""
        step = self._workers.chunk_images
        found = []
        for number, part in enumerate(self._parts):
            for start in range(0, len(part.source), step):
                positions = tuple(range(start, min(start + step, len(part.source))))
                path = f"partial/{self.fingerprint}/{number:03d}-{start:08d}.npz"
                found.append(Chunk(number, positions, path))
        return found

    def run(self) -> dict[str, Counts]:
        """Counts all parts, or what is missing of them.

        Returns:
            By part's name, complete.

        Raises:
            UserError: A worker met a user's mistake, died too often, or too many pictures do not
                decode.
        """
        chunks = self.chunks()
        done: dict[int, Counts] = {}
        there = {entry.path for entry in self._storage.list(f"partial/{self.fingerprint}")}
        for number, chunk in enumerate(chunks):
            if chunk.path in there:
                try:
                    counts = Counts.from_bytes(self._storage.read(chunk.path))
                except _DAMAGED:
                    logger.warning("%s is damaged; counted again", chunk.path)
                else:
                    if not counts.unreadable:  # Those may have been mended since.
                        done[number] = counts
        todo = [number for number in range(len(chunks)) if number not in done]
        if done:
            logger.info("going on: %d of %d chunks are there already", len(done), len(chunks))
        if todo:
            self._start(len(todo))
            self._work(chunks, todo, done)
        totals = {part.name: Counts.empty(part) for part in self._parts}
        for number, chunk in enumerate(chunks):
            totals[self._parts[chunk.part].name].add(done[number])
        self._check_unreadable(totals)
        return totals

    def example(self, part: int, position: int) -> Any:
        """See `Scorer.example`; computed by a worker."""
        self._start(1)
        return ray.get(self._actors[0].example.remote(self._parts_reference, part, position))

    def clean(self) -> None:
        """Removes the saved counts, once the report is written."""
        for entry in list(self._storage.list(f"partial/{self.fingerprint}")):
            self._storage.delete(entry.path)

    def _start(self, num_chunks: int) -> None:
        if self._actors:
            return
        workers = self._workers
        actor = ray.remote(_Worker).options(
            num_cpus=workers.cpus_per_worker,
            num_gpus=1 if workers.use_gpu else 0,
            max_restarts=workers.max_failures,
            max_task_retries=workers.max_failures,
            runtime_env=worker_runtime_env(self._checkpoint),
            # Else a trial of Ray Tune would put them into its own placement group, without room.
            scheduling_strategy="DEFAULT",
        )
        # In a list, so that a call hands over the reference and not a copy of the parts.
        self._parts_reference = [ray.put(self._parts)]
        self._actors = [
            actor.remote(self._checkpoint, workers, self._precision)
            for _ in range(min(workers.num_workers, num_chunks))
        ]

    def _work(self, chunks: list[Chunk], todo: list[int], done: dict[int, Counts]) -> None:
        """Hands each worker a chunk, and the next when it is done."""
        queue = iter(todo)
        running: dict[Any, tuple[int, Any]] = {}
        began = logged = time.monotonic()
        images = 0

        def hand_out(actor: Any) -> None:
            number = next(queue, None)
            if number is not None:
                chunk = chunks[number]
                reference = actor.score.remote(self._parts_reference, chunk.part, chunk.positions)
                running[reference] = (number, actor)

        for actor in self._actors:
            hand_out(actor)
        while running:
            (reference, *_), _ = ray.wait(list(running))
            number, actor = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                if "creation task" in str(error):  # It never lived: a defect, not a lack of memory.
                    raise
                raise UserError(
                    f"workers.max_failures={self._workers.max_failures}: a worker died more often "
                    f"({str(error).splitlines()[0]}): give it more memory, or lower "
                    "workers.batch_images; the same command goes on where this one ended"
                ) from None
            if isinstance(result, str):
                raise UserError(result)
            self._storage.write(chunks[number].path, result)
            done[number] = Counts.from_bytes(result)
            images += len(chunks[number].positions)
            hand_out(actor)
            now = time.monotonic()
            if now - logged > LOG_EVERY_S or not running:
                logged, rate = now, images / (now - began)
                left = sum(len(c.positions) for n, c in enumerate(chunks) if n not in done)
                logger.info(
                    "%d images scored, %.2f images/s, about %.0f s left", images, rate, left / rate
                )

    def _check_unreadable(self, totals: dict[str, Counts]) -> None:
        for name, counts in totals.items():
            total = len(counts.scores) + len(counts.unreadable)
            for key, reason in counts.unreadable:
                logger.warning("%s: left out: %s: %s", name, key, reason)
            if len(counts.unreadable) > self._max_bad_share * total:
                raise UserError(
                    f"max_bad_share={self._max_bad_share}: {len(counts.unreadable)} of {total} "
                    f"pictures of {name} do not decode (first: {counts.unreadable[0][1]}): mend "
                    "them, or allow a larger share"
                )


def resolve_workers(workers: WorkersConfig) -> WorkersConfig:
    """Fills in what the cluster decides; Ray must be running.

    Raises:
        UserError: GPUs are wanted and there are none, or there is no room for the workers.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = bool(gpus) if workers.use_gpu is None else workers.use_gpu
    if use_gpu and not gpus:
        raise UserError("workers.use_gpu=true: the cluster has no GPU: set it to false")
    room = int(resources.get("CPU", 0) // workers.cpus_per_worker)
    most = min(gpus, room) if use_gpu else room
    if most < max(1, workers.num_workers):  # They would be waited for for ever.
        raise UserError(
            f"workers.num_workers={workers.num_workers}, workers.cpus_per_worker="
            f"{workers.cpus_per_worker:g}: the cluster has room for {most} such workers: lower one "
            "of the two"
        )
    return replace(workers, use_gpu=use_gpu, num_workers=workers.num_workers or most)


def fingerprint(
    checkpoint: str, parts: Sequence[Part], workers: WorkersConfig, precision: str
) -> str:
    """16 hex digits over all that the counts depend on, the number of workers not among it."""
    described = [
        (p.name, p.source.fingerprint(), asdict(p.space), asdict(p.geometry), p.strata)
        for p in parts
    ]
    context = (FORMAT, precision, bool(workers.use_gpu), workers.threads, workers.batch_images)
    return digest(
        checkpoint_fingerprint(local(checkpoint)), described, context, workers.chunk_images
    )


def as_json(value: Any) -> str:
    """Stable JSON for files."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
