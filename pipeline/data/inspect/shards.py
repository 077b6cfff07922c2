"""Checks finished shards against their manifests: bytes, places, images and histogram."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.inspect.check import CheckTask, run_checks, spread_evenly
from pipeline.data.inspect.report import CheckReport, Finding, Section
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.pixels.decode import decode
from pipeline.data.shards.format import (
    MANIFEST_NAME,
    Manifest,
    SampleRecord,
    ShardError,
    ShardRecord,
    folder,
    read_sample,
)
from pipeline.data.shards.union import label_problems
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

_READ_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class _ShardTask(CheckTask):
    samples: tuple[SampleRecord, ...]
    uri: str
    shard: ShardRecord
    num_classes: int


def check_shards(
    uri: str, splits: tuple[str, ...] | None, share: float, workers: int | None
) -> CheckReport:
    """Checks all folders of shards below a root.

    Args:
        uri: Root of the shards.
        splits: Which splits; None takes all.
        share: Share of the samples to decode, spread evenly; every shard's bytes are hashed. The
            histogram is compared only when all are decoded.
        workers: Processes; None takes one for each CPU.

    Raises:
        UserError: There are no shards, or the storage fails.
    """
    storage = open_storage(uri)
    report = CheckReport("shards")
    manifests: dict[tuple[str, str], Manifest] = {}
    tasks: list[_ShardTask] = []
    for dataset, split, paths in _folders(storage, splits):
        section = report.section(dataset, split)
        manifest = _manifest(storage, section, paths)
        if manifest is None:
            continue
        manifests[dataset, split] = manifest
        path = f"{section.name}/{MANIFEST_NAME}"
        section.findings += [Finding("manifest", path, text) for text in label_problems(manifest)]
        section.samples = manifest.num_samples
        known = {MANIFEST_NAME, *(shard.name for shard in manifest.shards)}
        strays = (path for path in paths if path.rpartition("/")[2] not in known)
        section.findings += [Finding("stray", path) for path in strays]
        for shard in manifest.shards:
            tasks.append(
                _ShardTask(
                    dataset=dataset,
                    split=split,
                    samples=spread_evenly(shard.samples, share),
                    uri=storage.uri,
                    shard=shard,
                    num_classes=len(manifest.class_pixels),
                )
            )
    if not report.sections:
        raise UserError(
            f"shards={uri}: no <dataset>/<split>/ with shards below it: give the folder that "
            "prepare_shards.py wrote"
        )
    totals = {key: np.zeros(len(m.class_pixels), np.int64) for key, m in manifests.items()}
    for task, pixels in run_checks(report, _check_shard, tasks, workers):
        totals[task.dataset, task.split] += pixels
    for key, manifest in manifests.items():
        section = report.section(*key)
        if share == 1 and section.lost == 0:
            section.findings += _compared(totals[key], manifest)
    return report


def _folders(
    storage: Storage, splits: tuple[str, ...] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """Dataset, split and files of each folder that holds tars or a manifest."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in storage.list():
        parts = entry.path.split("/")
        if len(parts) == 3 and (parts[2].endswith(".tar") or parts[2] == MANIFEST_NAME):
            found.setdefault((parts[0], parts[1]), []).append(entry.path)
    for (dataset, split), paths in sorted(found.items()):
        if splits is None or split in splits:
            yield dataset, split, paths


def _manifest(storage: Storage, section: Section, paths: list[str]) -> Manifest | None:
    path = f"{section.name}/{MANIFEST_NAME}"
    if path not in paths:
        section.findings.append(Finding("unfinished", section.name, "run prepare_shards.py again"))
        return None
    try:
        return Manifest.from_json(storage.read(path), path)
    except UserError as error:
        section.findings.append(Finding("manifest", path, str(error)))
        return None


def _check_shard(task: _ShardTask) -> tuple[list[Finding], np.ndarray]:
    """What is wrong with a shard, and the pixels of each class in its labels: (K,) int64."""
    storage = open_storage(task.uri)
    path = f"{folder(task.dataset, task.split)}/{task.shard.name}"
    # A damaged manifest may name more classes than a label has ids.
    pixels = np.zeros(max(256, task.num_classes), np.int64)
    findings = list(_check_bytes(storage, path, task.shard))
    if any(finding.detail == _MISSING for finding in findings):
        return findings, pixels[: task.num_classes]
    for record in task.samples:
        name = f"{path}, key {record.key}"
        try:
            stored = read_sample(storage, task.dataset, task.split, task.shard, record)
            with bad_sample_errors("the sample"):
                _, label = decode(stored.jpeg, stored.png)
                if stored.native_png is not None:
                    decode(stored.jpeg, stored.native_png)
        except (ShardError, BadSample, UserError) as error:
            if isinstance(error, UserError) and not findings:
                raise  # The shard's own size was right, so it is the storage that fails.
            kind = "decode" if isinstance(error, BadSample) else "offset"
            findings.append(Finding(kind, name, str(error)))
            continue
        if label.shape != (record.height, record.width):
            text = f"{label.shape[1]}x{label.shape[0]} pixels, not {record.width}x{record.height}"
            findings.append(Finding("decode", name, text))
        counts = np.bincount(label.ravel(), minlength=256)
        used = np.flatnonzero(counts).tolist()
        if unknown := [i for i in used if task.num_classes <= i != IGNORE]:
            findings.append(Finding("decode", name, f"ids {unknown[:8]} are no classes"))
        pixels[: len(counts)] += counts
    return findings, pixels[: task.num_classes]


_MISSING = "is missing"


def _check_bytes(storage: Storage, path: str, shard: ShardRecord) -> Iterator[Finding]:
    try:
        size = storage.size(path)
    except FileNotFoundError:
        yield Finding("shard", path, _MISSING)
        return
    if size != shard.size:
        yield Finding("shard", path, f"has {size:,} bytes, not {shard.size:,}")
        return
    digest = hashlib.sha256()
    for start in range(0, size, _READ_BYTES):
        digest.update(storage.read_range(path, start, min(_READ_BYTES, size - start)))
    if digest.hexdigest() != shard.sha256:
        yield Finding("shard", path, f"has SHA-256 {digest.hexdigest()}, not {shard.sha256}")


def _compared(found: np.ndarray, manifest: Manifest) -> Iterator[Finding]:
    wanted = np.array(manifest.class_pixels, np.int64)
    for number in np.flatnonzero(found != wanted).tolist():
        text = f"{found[number]:,} pixels in the labels, {wanted[number]:,} in the manifest"
        yield Finding("histogram", f"class {number}", text)
