"""The micro-batches of one worker: its blocks of the stream, checked against the plan."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.ingest.stream import Timed
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.question import Question
from pipeline.training.state.order import StreamOrder
from pipeline.training.worker.bad_samples import BadSamples


class MicroBatch(NamedTuple):
    """What one worker sees in one pass, on the device."""

    image: Tensor
    """(B, H, W, 3) uint8."""
    label: Tensor
    """(B, H, W) int64, positions in the step's labels, or IGNORE."""
    dataset: Tensor
    """(B,) int64, positions in `Mixture.datasets`."""
    digest: int
    """Digest of the rows; see `StreamOrder.digest`."""


class BlockDealer:
    """Picks the blocks of one worker, and checks that the planned rows arrived.

    A micro-batch of all workers is `cluster.num_workers` blocks of the stream, dealt to the
    workers in turn since the first step of this attempt.

    Args:
        order: The rows that must come.
        first_step: Steps done before this attempt.
        bad: Counts the samples that could not be read.
    """

    def __init__(
        self,
        config: TrainMixConfig,
        order: StreamOrder,
        first_step: int,
        rank: int,
        world: int,
        bad: BadSamples,
    ) -> None:
        self._rows, self._accumulate = config.rows_per_pass, config.train.accumulate
        self._per_part = config.cluster.num_workers
        self._order, self._first_step, self._bad = order, first_step, bad
        self._rank, self._world = rank, world

    def take(self, step: int, part: int, batches: Timed, question: Question) -> MicroBatch:
        """The next micro-batch.

        Args:
            step: Steps done.
            part: Number of the pass in the step, from 0 to `train.accumulate` - 1.
            batches: The blocks of this worker, on the device.
            question: The label set of the step.

        Raises:
            RuntimeError: Other rows came than planned.
        """
        rows, per_part = self._rows, self._per_part
        first = part * per_part
        turn = (step - self._first_step) * self._accumulate * per_part + first
        mine = [i for i in range(per_part) if (turn + i) % self._world == self._rank]
        blocks = [next(batches) for _ in mine]
        stream, starts = self._order.rows(step), [(first + i) * rows for i in mine]
        planned = [row for start in starts for row in stream[start : start + rows]]
        found = [int(t) for block in blocks for t in block["t"]]
        if found != [row.t for row in planned]:
            raise RuntimeError(
                f"worker {self._rank} got rows {found} of the stream at step {step}, not "
                f"{[row.t for row in planned]}: the ingest is out of order"
            )
        checksums: list[int] = []
        for block in blocks:
            self._bad.add(block)
            checksums += block["crc32"].tolist()
        image = _joined([block["image"] for block in blocks])
        dataset = torch.tensor([row.dataset for row in planned])
        dataset = dataset.to(image.device, non_blocking=True)
        label = question.target(_joined([block["label"] for block in blocks]), dataset)
        return MicroBatch(image, label, dataset, self._order.digest(planned, checksums))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
