"""Which rows of the stream the workers of one node get, and in which blocks they come.

The rows that are left are cut into batches of one worker's forward pass, which are dealt to all
workers in turn: worker r of N gets batches r, r + N, r + 2 N, ... A block holds several batches of
one worker, so that few objects pass between processes; the blocks of a node go round among its
workers. All of it is a pure function of the block's number, so a loader needs to know no more.
"""

from dataclasses import dataclass

ROWS_PER_BLOCK = 64
"""Rows up to which batches share a block: Ray's cost of a block is that of some 30 rows."""
MIB_PER_BLOCK = 64
"""Bytes up to which batches share a block; several lie in the node's object store for each
worker."""


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """The part of the rows [start, stop) that the workers of one node get."""

    start: int
    """First row that is left; the start of a batch."""
    stop: int
    """Row after the last one; the end of a batch."""
    rows_per_batch: int
    """Rows of one forward pass of one worker."""
    batches_per_block: int
    """Most batches of one block; the last ones of the run may have fewer."""
    num_workers: int
    """Workers of all nodes."""
    workers: tuple[int, ...]
    """Ranks of this node's workers, in ascending order."""

    def __post_init__(self) -> None:
        assert (self.stop - self.start) % self.rows_per_batch == 0
        assert self.workers == tuple(sorted(self.workers))

    @property
    def num_blocks(self) -> int:
        """Blocks of all workers of the node."""
        batches = (len(self.batches_of(worker)) for worker in self.workers)
        return sum(-(-count // self.batches_per_block) for count in batches)

    def batches_of(self, worker: int) -> range:
        """The first row of each batch of one worker."""
        rows = self.rows_per_batch
        return range(self.start + worker * rows, self.stop, self.num_workers * rows)

    def block(self, number: int) -> range:
        """The first row of each batch in one block.

        Earlier workers have as many batches as later ones or one more, so that the blocks of the
        last round are those of the first workers, and the rotation has no gap.
        """
        turn, place = divmod(number, len(self.workers))
        first = turn * self.batches_per_block
        return self.batches_of(self.workers[place])[first : first + self.batches_per_block]


def batches_per_block(rows_per_batch: int, crop_px: int) -> int:
    """Batches that share a block: as many as the limits above allow, at least one."""
    rows = min(ROWS_PER_BLOCK, (MIB_PER_BLOCK << 20) // bytes_of_crop(crop_px))
    return max(1, rows // rows_per_batch)


def bytes_of_crop(crop_px: int) -> int:
    """Bytes of the image and the label of a crop."""
    return crop_px * crop_px * 4
