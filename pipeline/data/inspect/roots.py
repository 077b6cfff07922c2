"""Checks datasets' downloads before hours are spent on their conversion.

Reads what the conversion would read, by the same readers and decoders, so a sample without a
finding is one that the conversion takes.
"""

import functools
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import Reader, Source
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.inspect.check import CheckTask, run_checks, spread_evenly
from pipeline.data.inspect.report import CheckReport, Finding, Section
from pipeline.data.pixels.checks import BadSample, reason_of
from pipeline.data.pixels.encode import decode_image, exif_orientation
from pipeline.errors import Outage, UserError
from pipeline.storage.archives.archive import SUFFIXES
from pipeline.storage.base import ObjectError
from pipeline.storage.open import open_storage

SAMPLES_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class _RootTask(CheckTask):
    samples: tuple[Source, ...]
    root: str
    own: OwnDataset | None


def check_roots(
    roots: dict[str, str],
    splits: tuple[str, ...] | None,
    share: float,
    workers: int | None,
    own: Mapping[str, OwnDataset] | None = None,
) -> CheckReport:
    """Checks the downloads of datasets.

    Args:
        roots: URI of each dataset's root.
        splits: Which splits; None takes those that are there.
        share: Share of the samples to read, spread evenly; listings are checked whole.
        workers: Processes; None takes one for each CPU.
        own: Datasets of the user's own, by name.

    Raises:
        UserError: A root does not exist, or a storage fails.
    """
    report = CheckReport("roots")
    tasks: list[_RootTask] = []
    readers: dict[str, Reader] = {}
    given: dict[str, OwnDataset | None] = dict.fromkeys(roots) | dict(own or {})
    for dataset, spec in given.items():
        root = spec.root if spec else roots[dataset]
        for section, chosen in _listed(dataset, root, spec, splits, share, readers):
            report.sections.append(section)
            for start in range(0, len(chosen), SAMPLES_PER_TASK):
                part = chosen[start : start + SAMPLES_PER_TASK]
                place = {"dataset": dataset, "split": section.split, "root": root}
                tasks.append(_RootTask(**place, samples=part, own=spec))
    first_seen: dict[tuple[str, bytes], tuple[str, str]] = {}
    counts: dict[tuple[str, str], np.ndarray] = {}
    for task, (digests, native_pixels) in run_checks(report, _check_task, tasks, workers):
        place = task.dataset, task.split
        counts[place] = counts.get(place, 0) + native_pixels
        for digest, path in digests:
            split, twin = first_seen.setdefault((task.dataset, digest), (task.split, path))
            if split != task.split:
                (_, first), (later, second) = sorted(((split, twin), (task.split, path)))
                findings = report.section(task.dataset, later).findings
                findings.append(Finding("duplicate", second, f"is {first}"))
    for (dataset, split), native_pixels in counts.items():
        section = report.section(dataset, split)
        some = "" if share == 1 else f" (of {section.checked} that were read)"
        for text in readers[dataset].remarks(native_pixels):
            section.findings.append(Finding("ids", f"{split}: {text}{some}"))
    return report


def _is_missing(root: str) -> bool:
    """Whether a root is neither an archive nor a folder that holds anything."""
    if root.lower().endswith(SUFFIXES):
        parent, slash, name = root.rpartition("/")
        if open_storage(parent or slash or ".").exists(name):
            return False
    return open_storage(root).is_empty()


def _listed(
    dataset: str,
    root: str,
    own: OwnDataset | None,
    splits: tuple[str, ...] | None,
    share: float,
    readers: dict[str, Reader],
) -> Iterator[tuple[Section, tuple[Source, ...]]]:
    """A section for each split with what its listing shows, and the samples to read.

    The reader is added to `readers`.
    """
    if _is_missing(root):
        key = f"own.{dataset}.root" if own else f"roots.{dataset}"
        raise UserError(f"{key}={root}: does not exist or is empty; correct the address")
    try:
        reader = open_own(dataset, own) if own else open_reader(dataset, root)
    except UserError as error:
        yield Section(dataset, "", findings=[_refusal(root, error)]), ()
        return
    readers[dataset] = reader
    empty = []
    for split in reader.splits:
        if splits is not None and split not in splits:
            continue
        section = Section(dataset, split)
        try:
            listing = reader.listing(split)
        except UserError as error:
            section.findings.append(_refusal(f"{root} ({split})", error))
            yield section, ()
            continue
        section.samples = len(listing.sources) + len(listing.left_out)
        section.findings += [Finding("pair", bad.name, bad.reason) for bad in listing.left_out]
        section.findings += [Finding("note", text) for text in listing.notes]
        if not listing.sources:
            section.findings.append(Finding("empty", f"{root} ({split})", reader.empty_hint(split)))
            empty.append(section)
            continue
        yield section, spread_evenly(listing.sources, share)
    all_missing = len(empty) == len(splits or reader.splits)
    for section in empty:
        # A download of one split alone is usual, unless the other was asked for.
        if splits is not None or all_missing or section.samples:
            yield section, ()


def _refusal(place: str, error: UserError) -> Finding:
    """What keeps a root from being listed: its storage, or what lies in it."""
    return Finding(
        "access" if isinstance(error, ObjectError | Outage) else "layout", place, str(error)
    )


@functools.lru_cache(maxsize=8)
def _open_once(dataset: str, root: str, own: OwnDataset | None) -> tuple[Reader, np.ndarray]:
    """The reader, and (256,) bool: the ids that its labels may hold."""
    reader = open_own(dataset, own) if own else open_reader(dataset, root)
    known = reader.known_ids()
    reader.keep_unknown_ids()
    return reader, known


_Seen = tuple[list[tuple[bytes, str]], np.ndarray]
"""The content hash and path of each image, and the pixels of each native id: (256,) int64."""


def _check_task(task: _RootTask) -> tuple[list[Finding], _Seen]:
    """What is wrong with the samples, and what they have together."""
    reader, known = _open_once(task.dataset, task.root, task.own)
    findings: list[Finding] = []
    digests: list[tuple[bytes, str]] = []
    native_pixels = np.zeros(256, np.int64)
    for source in task.samples:
        size = None
        try:
            data = reader.read(source.image, "was there when it was listed")
            digests.append((hashlib.sha256(data).digest()[:16], source.image))
            size = decode_image(data).shape[:2]
            findings += _remarks(source.image, data)
        except BadSample as error:
            findings.append(Finding("image", source.image, str(error)))
        except UserError:
            raise
        except Exception as error:  # As in the conversion: one file's surprise ends nothing.
            findings.append(Finding("image", source.image, reason_of(error)))
        findings += _check_label(reader, source, size, known, native_pixels)
    return findings, (digests, native_pixels)


def _check_label(
    reader: Reader,
    source: Source,
    size: tuple[int, ...] | None,
    known: np.ndarray,
    native_pixels: np.ndarray,
) -> Iterator[Finding]:
    """What is wrong with a label, whose pixels of each id are added to `native_pixels`."""
    try:
        label = reader.native_label(source)
    except UserError:
        raise
    except Exception as error:  # As in the conversion: one file's surprise ends nothing.
        text = str(error)
        if not isinstance(error, BadSample):
            text = f"{source.label}: {type(error).__name__}: {reason_of(error)}"
        yield Finding("label", source.image, text)
        return
    if size is not None and label.shape != size:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (size, label.shape)]
        text = f"the image is {sizes[0]} pixels, its label {sizes[1]}"
        yield Finding("size", source.image, text)
    counts = np.bincount(label.ravel(), minlength=256)
    native_pixels += counts
    if unknown := np.flatnonzero((counts > 0) & ~known).tolist():
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        text = f"ids {shown} in {int(counts[unknown].sum()):,} pixels"
        yield Finding("unknown id", source.label, text)


def _remarks(path: str, data: bytes) -> Iterator[Finding]:
    """What is unusual about an image that decodes."""
    image = Image.open(io.BytesIO(data))
    if (turn := exif_orientation(data)) != 1:
        yield Finding("rotated", path, f"EXIF orientation {turn}")
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        yield Finding("grey", path)
    if image.mode == "CMYK":
        yield Finding("CMYK", path)
