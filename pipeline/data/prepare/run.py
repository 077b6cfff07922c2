"""The conversion as a whole: from dataset roots to folders of shards, each with its manifest.

Lists every root first, so that a user's mistake is reported before any work starts. Then one
pool of workers takes the units of all datasets; a split's manifest is written when its last unit
is in.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

from rich import box
from rich.table import Table

from pipeline.data.datasets import READERS, open_reader
from pipeline.data.datasets.base import LeftOut, Listing, Reader, Split
from pipeline.data.datasets.few_shot.training import open_training
from pipeline.data.datasets.own import open_own
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.prepare.convert import Unit, convert_units
from pipeline.data.prepare.relabel import (
    Relabelling,
    load_relabelling,
    with_decisions,
    with_full_ade20k,
)
from pipeline.data.prepare.split_job import SplitJob, describe
from pipeline.data.shards.format import Manifest, folder
from pipeline.data.taxonomy import overrides
from pipeline.errors import Terminated, UserError
from pipeline.progress import Progress
from pipeline.signals import handled
from pipeline.storage.base import Storage
from pipeline.storage.lease import Lease
from pipeline.storage.open import open_storage
from pipeline.storage.places import try_writable_place

logger = logging.getLogger(__name__)

LOCK_NAME = "prepare.lock"
"""The lock's place in the output while a conversion writes there; see `Lease`."""


@dataclass(frozen=True)
class PrepareSummary:
    """What a conversion made."""

    splits: tuple[Manifest, ...]
    unchanged: frozenset[str]
    """Folders of the splits that an earlier run had finished."""
    images_converted: int
    """Images of this run, without those that an earlier run had finished."""
    seconds: float

    def table(self) -> Table:
        """The closing table for the terminal."""
        table = Table(box=box.SIMPLE)
        for name in ("dataset", "split"):
            table.add_column(name, no_wrap=True)
        for name in ("images", "shards", "GiB", "left out", "classes seen"):
            table.add_column(name, justify="right")
        table.add_column("")
        for made in self.splits:
            is_unchanged = folder(made.dataset, made.split) in self.unchanged
            cells = _cells([made])
            table.add_row(made.dataset, made.split, *cells, "unchanged" if is_unchanged else "")
        if len(self.splits) > 1:
            table.add_section()
            table.add_row("all", "", *_cells(self.splits), "")
        return table


def _cells(splits: Sequence[Manifest]) -> tuple[str, ...]:
    return (
        f"{sum(made.num_samples for made in splits):,}",
        f"{sum(len(made.shards) for made in splits):,}",
        f"{sum(made.size for made in splits) / 2**30:,.3f}",
        f"{sum(len(made.left_out) for made in splits):,}",
        str(len({name for made in splits for name in made.classes_seen})),
    )


def prepare(
    config: PrepareConfig, start_ray: Callable[[float], None] | None = None
) -> PrepareSummary:
    """Converts datasets to shards.

    `start_ray` is called with the number of CPUs needed once there is something to convert; None
    leaves it to Ray to connect or start.

    Raises:
        UserError: The configuration does not fit the roots or the output, a storage fails, or too
            many samples are bad. Shards finished until then are kept for the next attempt.
    """
    began = time.monotonic()
    out = open_storage(config.out)
    try_writable_place("out", config.out)
    # Every root and table is read before the lock is taken: what is wrong with them is reported
    # at once, even while another run writes there.
    roots = list(_open_roots(config))
    _check_splits(config, roots)
    relabellings = _relabel(config, roots)
    with Lease(out, LOCK_NAME) as lease:
        jobs = _plan(config, out, roots, relabellings)
        units = [unit for job in jobs for unit in job.waiting]
        num_images = sum(len(unit.sources) for unit in units)
        # Ray is only started for work: a finished conversion is recognised without it.
        if units:
            with _interruptible(jobs, out) as arm:
                if start_ray is not None:
                    start_ray(config.workers or 1)
                    arm()  # Ray has put a handler of its own in place.
                _convert(jobs, units, num_images, lease, config.workers)
    splits = tuple(job.manifest for job in jobs if job.manifest is not None)
    unchanged = frozenset(job.name for job in jobs if job.unchanged)
    return PrepareSummary(splits, unchanged, num_images, time.monotonic() - began)


def _plan(
    config: PrepareConfig,
    out: Storage,
    roots: list[tuple[Reader, dict[Split, Listing]]],
    relabellings: dict[str, Relabelling],
) -> list[SplitJob]:
    """All splits with what earlier runs left of them; finishes those that lack no shard."""
    jobs = []
    for reader, listings in roots:
        for split in list(listings):
            # Not kept a second time: a listing may hold 118,000 samples.
            listing, table = listings.pop(split), relabellings.get(reader.name)
            jobs.append(SplitJob(config, out, reader, split, listing, table))
    for job in jobs:
        if job.manifest is None and (count := out.clean(job.name)):
            logger.info("%s: removed %d half-written files of an earlier run", job.name, count)
        job.check_bad_fraction()
        if job.manifest is None and not job.waiting:
            job.finish()
    return jobs


def _convert(
    jobs: list[SplitJob], units: list[Unit], num_images: int, lease: Lease, workers: int | None
) -> None:
    logger.info("converting %d images into %d shards", num_images, len(units))
    progress = Progress(num_images, "images")
    owners = {(job.dataset, job.split): job for job in jobs}
    for unit, result in convert_units(units, workers):
        lease.check()
        job = owners[unit.dataset, unit.split]
        progress.add(len(unit.sources), unit.name)
        job.add(unit, result)
        if not job.waiting:
            job.finish()


@contextmanager
def _interruptible(jobs: list[SplitJob], out: Storage) -> Iterator[Callable[[], None]]:
    """Turns SIGTERM into an exception, and says what is kept when that or Ctrl-C arrives.

    Yields:
        Puts the handler in place, again where something else has replaced it.
    """

    def stop(number: int, frame: object) -> None:
        raise Terminated

    try:
        with handled(stop, signal.SIGTERM) as arm:
            yield arm
    except KeyboardInterrupt:
        total = sum(job.num_units for job in jobs)
        done = total - sum(len(job.waiting) for job in jobs)
        logger.warning(
            f"interrupted: {done} of {total} shards are finished and kept in {out.uri}; the same "
            "command continues from there"
        )
        raise


def _relabel(
    config: PrepareConfig, roots: list[tuple[Reader, dict[Split, Listing]]]
) -> dict[str, Relabelling]:
    """Loads MSeg's decisions and gives them to the listings, or notes what is done without them."""
    readers = {reader.name: listings for reader, listings in roots if reader.name in READERS}
    tables = {} if config.relabel is None else load_relabelling(config.relabel, readers)
    if "ade20k" in tables and config.ade20k_full is None:
        raise UserError(
            "ade20k_full: not set; the decisions over ADE20K name segments of its full release "
            "(ADE20K_2016_07_26): give that folder, or `none` to leave ADE20K as it is"
        )
    if config.ade20k_full == "none":
        tables.pop("ade20k", None)
    for dataset, listings in readers.items():
        if dataset not in tables and config.taxonomy == "universal":
            _note_overrides(config.tables.get(dataset, dataset), listings)
    for dataset, table in tables.items():
        for split, listing in readers[dataset].items():
            listing = with_decisions(listing, split, table)
            if dataset == "ade20k" and config.ade20k_full is not None:
                listing = with_full_ade20k(listing, config.ade20k_full)
            readers[dataset][split] = listing
            logger.info("%s: %s", dataset, listing.notes[-1])
    return tables


def _note_overrides(table: str, listings: dict[Split, Listing]) -> None:
    if not (changed := overrides(table)):
        return
    names = ", ".join(f"{name} ({target or 'ignored'})" for name, target in changed.items())
    note = f"without relabelling, not mapped as by MSeg: {names}"
    logger.info("%s: %s", table, note)
    for split, listing in listings.items():
        listings[split] = replace(listing, notes=(*listing.notes, note))


def _open_roots(config: PrepareConfig) -> Iterator[tuple[Reader, dict[Split, Listing]]]:
    """Each dataset's reader and its listings by split."""
    for name, root in config.roots.given.items():
        yield _listed(config, f"roots.{name}", root, open_reader(name, root))
    for name, own in config.own.items():
        yield _listed(config, f"own.{name}.root", own.root, open_own(name, own))
    for benchmark, root in config.few_shot.items():
        for reader in open_training(benchmark, root, open_storage(config.few_shot_splits)):
            yield _listed(config, f"few_shot.{benchmark}", root, reader)


def _check_splits(config: PrepareConfig, roots: list[tuple[Reader, dict[Split, Listing]]]) -> None:
    """Refuses a split that was asked for and that no root has; one root may lack it."""
    for split in cast(tuple[Split, ...], config.splits or ()):
        if not any(split in listings for _, listings in roots):
            hints = dict.fromkeys(reader.empty_hint(split) for reader, _ in roots)
            raise UserError(
                f"splits={list(config.splits or ())}: zero usable samples of split {split!r} in "
                f"any root: {'; '.join(hints)}"
            )


def _listed(
    config: PrepareConfig, key: str, root: str, reader: Reader
) -> tuple[Reader, dict[Split, Listing]]:
    """A reader with what it lists for each split that is wanted."""
    listings: dict[Split, Listing] = {}
    problems: dict[Split, str] = {}
    strangers: list[LeftOut] = []
    for split in reader.splits:
        if config.splits is not None and split not in config.splits:
            continue
        listing = reader.listing(split)
        for note in listing.notes:
            logger.warning("%s=%s: %s", key, root, note)
        if listing.sources:
            listings[split] = listing
            continue
        reasons = describe(listing.left_out) or "no file of it"
        problems[split] = f"zero usable samples of split {split!r} ({reasons})"
        # Labels alone are those of images that were not downloaded; both say that no name fits.
        if {bad.reason[:8] for bad in listing.left_out} >= {"no image", "no label"}:
            strangers += listing.left_out
    total = sum(len(listing.sources) for listing in listings.values()) + len(strangers)
    if problems and (not listings or len(strangers) > config.max_bad_fraction * total):
        hints = dict.fromkeys(reader.empty_hint(split) for split in problems)
        raise UserError(f"{key}={root}: {', '.join(problems.values())}: {'; '.join(hints)}")
    for split, problem in problems.items():  # Many downloads have one split alone.
        logger.warning("%s=%s: %s: skipped: %s", key, root, problem, reader.empty_hint(split))
    return reader, listings
