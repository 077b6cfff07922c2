"""The conversion as a whole: from dataset roots to folders of shards, each with its manifest.

Lists every root first, so that whatever the user got wrong is told before any work starts. Then one
pool of workers takes the units of all datasets; a split's manifest is written when its last unit
is in.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich import box
from rich.table import Table

from pipeline.data.convert import convert_units
from pipeline.data.datasets import SPLITS, Listing, Reader, Split, open_reader
from pipeline.data.prepare_config import PrepareConfig
from pipeline.data.progress import Progress
from pipeline.data.split_job import SplitJob, SplitSummary, describe
from pipeline.data.storage import open_storage
from pipeline.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a conversion made."""

    splits: tuple[SplitSummary, ...]
    images_converted: int
    """Images of this run, without those that an earlier run had finished."""
    seconds: float

    def table(self) -> Table:
        """The closing table for the terminal."""
        table = Table(box=box.SIMPLE)
        for name in ("dataset", "split"):
            table.add_column(name, no_wrap=True)
        for name in ("images", "shards", "MiB", "left out", "classes seen"):
            table.add_column(name, justify="right")
        table.add_column("")
        for row in self.splits:
            table.add_row(
                row.dataset,
                row.split,
                f"{row.images:,}",
                f"{row.shards:,}",
                f"{row.mib:,.1f}",
                f"{row.left_out:,}",
                str(row.classes_seen),
                "unchanged" if row.unchanged else "",
            )
        return table


def prepare(config: PrepareConfig, start_ray: Callable[[float], None] | None = None) -> Summary:
    """Converts datasets to shards.

    Args:
        config: What to convert.
        start_ray: Called with the number of CPUs needed once there is something to convert; None
            leaves it to Ray Data to connect or start.

    Raises:
        UserError: The configuration does not fit the roots or the output, a storage fails, or too
            many samples are bad. Shards finished until then are kept for the next attempt.
    """
    began = time.monotonic()
    out = open_storage(config.out)
    jobs = [
        SplitJob(config, out, reader, split, listing)
        for reader, listings in _open_roots(config)
        for split, listing in listings.items()
    ]
    for job in jobs:
        job.check_bad_fraction()
        if job.manifest is None and not job.waiting:
            job.finish()
    units = [unit for job in jobs for unit in job.waiting]
    num_images = sum(len(unit.sources) for unit in units)
    if units:
        if start_ray is not None:
            start_ray(config.workers or 1)
        logger.info("converting %d images into %d shards", num_images, len(units))
        progress = Progress(num_images, "images")
        owners = {(job.dataset, job.split): job for job in jobs}
        for unit, result in convert_units(units, config.workers):
            job = owners[unit.dataset, unit.split]
            progress.add(len(unit.sources), unit.name)
            job.add(unit, result)
            if not job.waiting:
                job.finish()
    rows = tuple(job.summary() for job in jobs)
    return Summary(rows, num_images, time.monotonic() - began)


def _open_roots(config: PrepareConfig) -> Iterator[tuple[Reader, dict[Split, Listing]]]:
    """Each dataset's reader and its listings by split."""
    for dataset, root in config.roots.given.items():
        reader = open_reader(dataset, root)
        listings: dict[Split, Listing] = {}
        problems = []
        for split in SPLITS:
            if config.splits is not None and split not in config.splits:
                continue
            listing = reader.listing(split)
            for note in listing.notes:
                logger.warning("roots.%s=%s: %s", dataset, root, note)
            if listing.sources:
                listings[split] = listing
                continue
            reasons = describe(listing.left_out) or "no file of it"
            problems.append(f"zero usable samples of split {split!r} ({reasons})")
        if problems and (config.splits is not None or not listings):
            raise UserError(
                f"roots.{dataset}={root}: {', '.join(problems)}: give the folder of the official "
                "download, or set splits to those that it has"
            )
        for problem in problems:  # Nobody asked for this split: a download of the other is usual.
            logger.warning("roots.%s=%s: %s: skipped", dataset, root, problem)
        yield reader, listings
