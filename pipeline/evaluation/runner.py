"""Spreads the images of an evaluation over Ray workers, and adds up what they count, exactly.

Images are cut into chunks that do not depend on the number of workers. What a chunk counts is
saved below `<out>/partial/<fingerprint>/` when it is done, so that an evaluation that was killed
continues with the chunks that are missing. The fingerprint binds the counts to the checkpoint's
bytes, the protocol and the images. Counts are integers: their sum is exact in any order, and
every image is in exactly one chunk.
"""

import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from model.checkpoint import local
from model.errors import ModelError
from pipeline.checkpoints.files import checkpoint_fingerprint
from pipeline.checkpoints.resolvers import worker_runtime_env
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, WorkersConfig
from pipeline.evaluation.items import digest
from pipeline.evaluation.plan import Part
from pipeline.evaluation.scoring import Counts, Scorer
from pipeline.progress import Progress
from pipeline.spread import Death, Workers
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes when the same inputs would be counted otherwise."""

LOG_EVERY_S = 30.0

_DAMAGED = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What `Counts.from_bytes` raises over bytes that are no counts."""


@dataclass(frozen=True)
class Chunk:
    """Some images of a part, counted by one call."""

    part: int
    positions: tuple[int, ...]
    path: str
    """Where its counts are kept, relative to the evaluation's folder."""


def _make_worker(
    config: EvaluateConfig, parts: Sequence[Part]
) -> Callable[[Chunk | tuple[int, int]], Any]:
    """What a worker does: counts of a chunk as bytes, or one image as an example for the page."""
    workers = config.workers
    torch.set_num_threads(workers.threads)
    device = torch.device("cuda" if workers.use_gpu else "cpu")
    try:
        scorer = Scorer(config.checkpoint, parts, device, workers.batch_images, config.precision)
    except (ModelError, FileNotFoundError) as error:
        raise UserError(str(error)) from None

    def work(task: Chunk | tuple[int, int]) -> Any:
        try:
            if isinstance(task, Chunk):
                return scorer.score(task.part, task.positions).to_bytes()
            return scorer.example(*task)
        except (ModelError, FileNotFoundError) as error:
            raise UserError(str(error)) from None

    return work


class Runner:
    """The workers of one evaluation; a context manager.

    The configuration has its workers resolved, and a checkpoint that all of them can reach.
    """

    def __init__(self, config: EvaluateConfig, parts: Sequence[Part], out: str) -> None:
        self._config, self._parts, self._storage = config, list(parts), open_storage(out)
        self.fingerprint = evaluation_fingerprint(config, parts)
        """Fingerprint of all that the counts depend on."""
        self._workers: Workers[Any, Any] = Workers(
            partial(_make_worker, config, self._parts),
            config.workers.num_workers,
            num_cpus=config.workers.cpus_per_worker,
            num_gpus=1 if config.workers.use_gpu else 0,
            runtime_env=worker_runtime_env(config.checkpoint),
            on_death=self._on_death,
        )

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__(*error)

    def chunks(self) -> list[Chunk]:
        """All chunks of all parts, in order."""
        step = self._config.workers.chunk_images
        found = []
        for number, part in enumerate(self._parts):
            for start in range(0, len(part.source), step):
                positions = tuple(range(start, min(start + step, len(part.source))))
                path = f"partial/{self.fingerprint}/{number:03d}-{start:08d}.npz"
                found.append(Chunk(number, positions, path))
        return found

    def run(self) -> dict[str, Counts]:
        """The complete counts of all parts by name, of which an earlier run may have made some.

        Raises:
            UserError: A worker met a user's mistake, died too often, or too many images do not
                decode.
        """
        chunks = self.chunks()
        done = self._saved(chunks)
        todo = [chunk for chunk in chunks if chunk.path not in done]
        if done:
            logger.info("continuing: %d of %d chunks are there already", len(done), len(chunks))
        progress = Progress(sum(len(chunk.positions) for chunk in todo), "images", LOG_EVERY_S)
        for index, saved in self._workers.run(todo):
            # Saved first: what is counted by now survives whatever ends this process.
            self._storage.write(todo[index].path, saved)
            done[todo[index].path] = Counts.from_bytes(saved)
            progress.add(len(todo[index].positions))
        totals = {part.name: Counts.empty(part) for part in self._parts}
        for chunk in chunks:
            totals[self._parts[chunk.part].name].add(done[chunk.path])
        self._check_unreadable(totals)
        return totals

    def examples(self, places: Sequence[tuple[int, int]]) -> list[Any]:
        """`Scorer.example` of some images, each named by the number of a part and a position."""
        answers = dict(self._workers.run(places))
        return [answers[index] for index in range(len(places))]

    def clean(self) -> None:
        """Removes the saved counts, once the report is written."""
        for entry in list(self._storage.list(f"partial/{self.fingerprint}")):
            self._storage.delete(entry.path)

    def _saved(self, chunks: Sequence[Chunk]) -> dict[str, Counts]:
        """The counts of an earlier run, by path."""
        found = {}
        there = {entry.path for entry in self._storage.list(f"partial/{self.fingerprint}")}
        for chunk in chunks:
            if chunk.path in there:
                try:
                    counts = Counts.from_bytes(self._storage.read(chunk.path))
                except _DAMAGED:
                    logger.warning("%s is damaged; counted again", chunk.path)
                    continue
                if not counts.unreadable:  # Those may have been repaired since.
                    found[chunk.path] = counts
        return found

    def _on_death(self, death: Death) -> bool:
        most = self._config.workers.max_failures
        if death.of_worker <= most:
            return True
        raise UserError(
            f"workers.max_failures={most}: a worker died more often ({death.reason}): give it more "
            "memory, or lower workers.batch_images; the same command continues where this one ended"
        )

    def _check_unreadable(self, totals: dict[str, Counts]) -> None:
        most = self._config.max_bad_share
        for name, counts in totals.items():
            bad, total = counts.unreadable, len(counts.scores) + len(counts.unreadable)
            for key, reason in bad:
                logger.warning("%s: left out: %s: %s", name, key, reason)
            if len(bad) > most * total:
                raise UserError(
                    f"max_bad_share={most}: {len(bad)} of {total} images of {name} do not decode "
                    f"(first: {bad[0][1]}): fix or remove them, or allow a larger share"
                )


def resolve_workers(workers: WorkersConfig) -> WorkersConfig:
    """Fills in the settings that the cluster decides; Ray must be running.

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


def evaluation_fingerprint(config: EvaluateConfig, parts: Sequence[Part]) -> str:
    """16 hex digits over all that the counts depend on, which the number of workers is not."""
    described = [
        (p.name, p.source.fingerprint(), asdict(p.space), asdict(p.geometry), p.strata)
        for p in parts
    ]
    workers, checkpoint = config.workers, checkpoint_fingerprint(local(config.checkpoint))
    gpu, threads = bool(workers.use_gpu), workers.threads
    context = (FORMAT, config.precision, gpu, threads, workers.batch_images)
    return digest(checkpoint, described, context, workers.chunk_images)
