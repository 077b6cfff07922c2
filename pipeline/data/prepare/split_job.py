"""One dataset's split on its way from a listing to a manifest.

Knows what an earlier run may have left in the output: a manifest (finished), records beside shards
(interrupted), or what was made in another way, which is refused and never touched.
"""

import dataclasses
import logging
import posixpath
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.datasets.base import LeftOut, Listing, Reader
from pipeline.data.datasets.few_shot.training import PairReader
from pipeline.data.datasets.own import OwnReader
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.prepare.convert import (
    RECORD_SUFFIX,
    ConvertSettings,
    Unit,
    UnitResult,
    fingerprint_sources,
    make_units,
)
from pipeline.data.prepare.relabel import Relabelling
from pipeline.data.shards.format import FORMAT_VERSION, MANIFEST_NAME, Manifest, folder
from pipeline.data.taxonomy import universal
from pipeline.data.taxonomy.labelling import Labelling, in_native, in_universal, of_classes
from pipeline.errors import UserError
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

_SHOWN_REASONS = 5


class SplitJob:
    """Plans a split's units, collects their results, and writes the manifest.

    The listing holds the decisions of MSeg's relabelling, if that is applied to the dataset.

    Raises:
        UserError: The output holds this split made in another way, or a storage fails.
    """

    def __init__(
        self,
        config: PrepareConfig,
        out: Storage,
        reader: Reader,
        split: str,
        listing: Listing,
        relabelling: Relabelling | None,
    ) -> None:
        self.dataset = reader.name
        self.split = split
        self.name = folder(reader.name, split)
        self.manifest: Manifest | None = None
        self.unchanged = False
        """Whether an earlier run had finished the split."""
        self._out = out
        self._listing = listing
        self._reader = reader
        self._max_bad_fraction = config.max_bad_fraction
        self._labelling = labelling_of(config, reader, relabelling is not None)
        self._settings = ConvertSettings(
            short_side_px=config.short_side_px,
            jpeg_quality=config.jpeg_quality,
            samples_per_shard=config.samples_per_shard,
            taxonomy_fingerprint=self._labelling.taxonomy.fingerprint,
            table=config.tables.get(reader.name, reader.name),
            lookup=self._labelling.fingerprint,
            native=config.native,
            relabel="" if relabelling is None else relabelling.fingerprint,
            train_long_side=config.train_long_side if split == "train" else 0,
        )
        sizes = _file_sizes(reader.root, listing)
        self._source_fingerprint = fingerprint_sources(listing.sources, sizes)
        blank = Unit(
            dataset=reader.name,
            split=split,
            root=reader.root.uri,
            out=out.uri,
            settings=self._settings,
            labelling=self._labelling,
            own=reader.pairs if isinstance(reader, PairReader) else config.own.get(reader.name),
        )
        self._units = make_units(blank, listing.sources, sizes)
        self._results: dict[int, UnitResult] = {}
        present = {entry.path: entry.size for entry in out.list(self.name)}
        self._manifest_path = f"{self.name}/{MANIFEST_NAME}"
        if self._manifest_path in present:
            self._take_manifest(present)
        else:
            self._take_records(present)

    @property
    def num_units(self) -> int:
        """Shards of the whole split, as far as their samples are usable."""
        return len(self._units)

    @property
    def waiting(self) -> list[Unit]:
        """Units without a result; none once there is a manifest."""
        if self.manifest is not None:
            return []
        return [unit for unit in self._units if unit.index not in self._results]

    @property
    def left_out(self) -> list[LeftOut]:
        """All samples known so far to be left out, in order of their names."""
        found = [bad for result in self._results.values() for bad in result.left_out]
        return sorted((*self._listing.left_out, *found), key=lambda bad: (bad.name, bad.reason))

    def add(self, unit: Unit, result: UnitResult) -> None:
        """Takes a unit's result.

        Raises:
            UserError: Too many samples are bad by now.
        """
        self._results[unit.index] = result
        if result.left_out:
            self.check_bad_fraction()

    def check_bad_fraction(self) -> None:
        """Stops the job once more samples are bad than allowed, whatever the rest will be.

        Raises:
            UserError: They are; names the first few with their reasons.
        """
        if self.manifest is not None:
            return
        left_out = self.left_out
        total = len(self._listing.sources) + len(self._listing.left_out)
        if left_out and len(left_out) == total:
            raise UserError(f"{self.name}: zero usable samples: {describe(left_out)}")
        if len(left_out) > self._max_bad_fraction * total:
            raise UserError(
                f"{self.name}: {len(left_out)} of {total} samples are bad, more than "
                f"max_bad_fraction={self._max_bad_fraction:g}: {describe(left_out)}: fix or "
                "remove them, or raise max_bad_fraction to leave them out"
            )

    def finish(self) -> None:
        """Writes the manifest over all shards, and clears what only a restart needed.

        Raises:
            UserError: No label has a pixel of a known class, or the storage fails.
        """
        assert not self.waiting
        results = [self._results[unit.index] for unit in self._units]
        settings, taxonomy = self._settings.to_dict(), self._labelling.taxonomy
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dataset=self.dataset,
            split=self.split,
            taxonomy=taxonomy.name,
            taxonomy_fingerprint=settings.pop("taxonomy_fingerprint"),
            source_fingerprint=self._source_fingerprint,
            settings=settings,
            shards=tuple(result.shard for result in results if result.shard is not None),
            class_pixels=tuple(map(sum, zip(*(r.class_pixels for r in results), strict=True))),
            left_out=tuple((bad.name, bad.reason) for bad in self.left_out),
            notes=(
                *self._listing.notes,
                *self._relabel_notes(results),
                *self._remarks(results),
                *self._turned_notes(results),
            ),
            classes=() if taxonomy == universal() else taxonomy.classes,
            own_words=self._own_words(),
        )
        if not any(manifest.class_pixels):
            raise UserError(
                f"{self.name}: zero usable samples: none of {manifest.num_samples} labels has a "
                f"pixel of a known class; 255 is none: are these the labels of "
                f"{self.dataset}, with ids of its table?"
            )
        present = [entry.path for entry in self._out.list(self.name)]
        kept = {f"{self.name}/{shard.name}" for shard in manifest.shards}
        # Left by an interrupted run over a longer listing; a reader that globs would find them.
        for path in present:
            if path.endswith(".tar") and path not in kept:
                self._out.delete(path)
        # A begun upload whose answer got lost is begun again, and the first one stays behind.
        self._out.clean(self.name)
        # The records go last: a run that ends before the manifest is whole needs them again.
        self._out.write(self._manifest_path, manifest.to_json().encode())
        self._delete_records(present)
        self.manifest = manifest
        if manifest.left_out:
            logger.warning("%s: left out %s", self.name, describe(self.left_out))
        count = f"{manifest.num_samples} images in {len(manifest.shards)} shards"
        logger.info(f"{self.name}: finished, {count}")

    def _relabel_notes(self, results: list[UnitResult]) -> list[str]:
        if not self._settings.relabel:
            return []
        changed, missed = (sum(r.relabelled[part] for r in results) for part in (0, 1))
        note = f"{self.split}: relabelled {changed} segments"
        return [note + (f"; {missed} decisions found no pixel of their class" if missed else "")]

    def _remarks(self, results: list[UnitResult]) -> list[str]:
        """What the reader finds odd about the ids of all labels together."""
        if not all(result.native_pixels for result in results):
            return []
        counts = np.array([result.native_pixels for result in results], np.int64).sum(axis=0)
        remarks = [f"{self.split}: {text}" for text in self._reader.remarks(counts)]
        for remark in remarks:
            logger.warning("%s: %s", self.name, remark)
        return remarks

    def _turned_notes(self, results: list[UnitResult]) -> list[str]:
        """Names images whose masks may be drawn on another view than the stored one."""
        turned = [name for result in results for name in result.turned]
        if not turned:
            return []
        note = (
            f"{self.split}: {len(turned)} images such as {turned[0]} ask by EXIF to be shown "
            "turned or mirrored, and are stored without it: where their masks were drawn on the "
            "turned view, turn the files themselves, as `exiftran -ai` does, and convert them again"
        )
        logger.warning("%s: %s", self.name, note)
        return [note]

    def _take_manifest(self, present: dict[str, int]) -> None:
        """Accepts a finished output, or refuses one that this run would make otherwise."""
        where = f"{self._out.uri}/{self._manifest_path}"
        manifest = Manifest.from_json(self._out.read(self._manifest_path), where)
        found = {**manifest.settings, "taxonomy_fingerprint": manifest.taxonomy_fingerprint}
        self._check_settings(where, found)
        if manifest.source_fingerprint != self._source_fingerprint:
            raise UserError(
                f"{where}: was made from other source files than {self.dataset}'s root has now: "
                "choose another out, or delete that folder"
            )
        sizes = {shard.name: present.get(f"{self.name}/{shard.name}") for shard in manifest.shards}
        damaged = [shard.name for shard in manifest.shards if sizes[shard.name] != shard.size]
        if damaged:
            logger.warning("%s: lacks %s whole: converting again", where, ", ".join(damaged))
            self._out.delete(self._manifest_path)
            return
        self._delete_records(present)
        logger.info("%s: finished by an earlier run, nothing to do", self.name)
        self.manifest, self.unchanged = manifest, True

    def _take_records(self, present: dict[str, int]) -> None:
        """Accepts the finished shards of a conversion that was interrupted."""
        for unit in self._units:
            path = unit.path + RECORD_SUFFIX
            if path not in present:
                continue
            try:
                result = UnitResult.from_json(self._out.read(path))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
            self._check_settings(f"{self._out.uri}/{path}", result.settings)
            whole = result.shard is None or present.get(unit.path) == result.shard.size
            if whole and result.fingerprint == unit.fingerprint:
                self._results[unit.index] = result
        if self._results:
            count = f"{len(self._results)} of {len(self._units)}"
            logger.info(f"{self.name}: {count} shards finished by an earlier run")

    def _check_settings(self, where: str, found: dict[str, object]) -> None:
        wanted = dataclasses.asdict(self._settings)
        found = {"train_long_side": 0} | found
        # The taxonomy first: another one changes the look-up table too.
        for key in ("taxonomy_fingerprint", *sorted(wanted)):
            if found.get(key) != wanted[key]:
                raise UserError(
                    f"{where}: {key}={found.get(key)}, but this run has {wanted[key]}: choose "
                    "another out, or delete that folder"
                )

    def _own_words(self) -> tuple[tuple[str, str], ...]:
        """Each class of the user's own table, by its name in the taxonomy and in the table."""
        if not isinstance(self._reader, OwnReader):
            return ()
        names, table = self._labelling.taxonomy.classes, self._labelling.table
        kept = [entry for entry in self._reader.classes if entry.target is not None]
        return tuple((names[table[entry.native_id]], entry.name) for entry in kept)

    def _delete_records(self, paths: Iterable[str]) -> None:
        for path in paths:
            if path.endswith(f".tar{RECORD_SUFFIX}"):
                self._out.delete(path)


def describe(left_out: Sequence[LeftOut]) -> str:
    """The first few left-out samples with their reasons, and how many more there are."""
    shown = "; ".join(f"{bad.name}: {bad.reason}" for bad in left_out[:_SHOWN_REASONS])
    more = len(left_out) - _SHOWN_REASONS
    return shown + (f"; and {more} more" if more > 0 else "")


def labelling_of(config: PrepareConfig, reader: Reader, relabelled: bool) -> Labelling:
    """What the stored labels of a dataset are to mean; with MSeg's relabelling, or without."""
    if isinstance(reader, OwnReader):
        return of_classes(reader.name, reader.classes, config.taxonomy)
    if isinstance(reader, PairReader):
        return reader.labelling
    table = config.tables.get(reader.name, reader.name)
    if config.taxonomy == "native":
        return in_native(table)
    return in_universal(table, relabelled)


def _file_sizes(root: Storage, listing: Listing) -> dict[str, int]:
    """Bytes of the source files by path, from two listings instead of a request for each file."""
    sources = listing.sources
    sizes = {}
    for paths in ([source.image for source in sources], [source.label for source in sources]):
        common = posixpath.commonpath({posixpath.dirname(path) for path in paths})
        sizes.update((entry.path, entry.size) for entry in root.list(common))
    return sizes
