"""The segmentation of many images: what is left to do, who does it, and how it ended.

A few images are segmented in this process. Prefixes of object storage and large numbers go
to Ray workers: chunks of images' places, each worker with a network of its own; only places and
outcomes travel.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from model.checkpoint import is_uri, local
from model.lseg import LSeg
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.checkpoints.resolvers import pinned, worker_runtime_env
from pipeline.errors import UserError, printable
from pipeline.inference.config import (
    PredictConfig,
    check_vectors,
    parse_other,
    read_labels,
    sliding_of,
)
from pipeline.inference.formats import class_ids, write_format
from pipeline.inference.photos import Photo
from pipeline.inference.search import Search, find_photos
from pipeline.inference.segmenter import PhotoOutcome, Segmenter, SegmentTask, writing_errors
from pipeline.inference.shares import ShareTotals, in_words
from pipeline.inference.video import segment_video, split_videos
from pipeline.progress import Progress
from pipeline.spread import Death, Workers
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.storage.places import try_writable_place

logger = logging.getLogger(__name__)

SETTINGS = "prediction.json"
LABELS = "labels.txt"
MANY_SCORES = 40_000
"""Images times labels above which the cost is said before it is paid, where there is no GPU."""
WORKER_DEATHS = 4
"""A chunk of images whose worker died so often ends the segmentation."""
LABEL_SETTINGS = {"labels", "other", "no_label_id"}
"""Settings that make another label set."""
_SHOWN_REASONS = 5
_SHOWN_SHARES = 10
"""Images whose shares of labels are shown one by one; of more only the mean."""


@dataclass(frozen=True)
class PredictionSummary:
    """The outcome of a segmentation."""

    done: int
    """Images segmented now."""
    skipped: int
    """Images that an earlier run had done."""
    seconds: float
    folder: str
    """Where the results lie: `out`, or a folder in it that belongs to the label set."""
    remark: str = ""
    """What of the folders was not segmented, and why."""


def segment_photos(config: PredictConfig, start_ray: Callable[[float], None]) -> PredictionSummary:
    """Segments images.

    Args:
        config: Which images to segment, with which labels, into which folder.
        start_ray: Called with the number of CPUs where Ray is needed.

    Raises:
        UserError: Images, labels or the output folder are not usable; or, at the end, some of the
            images could not be read. The others are done then.
        ModelError: The checkpoint cannot be loaded.
    """
    try_writable_place("out", config.out)
    began = time.monotonic()
    videos, sources = split_videos(config.images)
    search = find_photos(sources) if sources or not videos else Search()
    out = open_storage(config.out)
    # Results of an earlier call are no images to segment.
    photos = [photo for photo in search.photos if not _is_in(photo.uri, out.uri)]
    if not photos and search.photos:
        first = search.photos[0].uri
        raise UserError(
            f"out={config.out}: {first} lies in it, where results go: give another folder"
        )
    config = replace(config, checkpoint=pinned(config.checkpoint))
    task = _task(config)
    if config.format != "none":
        class_ids(config.format, task.labels)  # Before the work, what it refuses.
    with writing_errors(config.out):
        task = _claim(out, task)
    out = open_storage(task.out)
    there = {entry.path for entry in out.list()}
    todo = [photo for photo in photos if f"{photo.name}.png" not in there]
    if len(todo) < len(photos):
        logger.info("%d of %d are done already", len(photos) - len(todo), len(photos))
    failed = _segment_all(task, todo, search.is_batch, start_ray) if todo else []
    done, new = [photo.name for photo in photos], len(todo)
    if videos:
        segmenter = _segmenter(task)
        for video in videos:
            outcomes, frames = segment_video(video, segmenter, task, there)
            failed += [outcome for outcome in outcomes if outcome.error]
            done, new = done + frames, new + len(outcomes)
    failures = [{"image": bad.uri, "reason": bad.error} for bad in failed]
    bad = {outcome.name for outcome in failed}
    with writing_errors(config.out):
        out.write("failed.json", (json.dumps(failures, indent=1) + "\n").encode())
        if config.format != "none":
            whole = [name for name in done if name not in bad]
            write_format(config.format, out, whole, task.labels)
            logger.info("%s: written to %s/%s", config.format, out.uri, config.format)
    remark = search.remark(lambda uri: _is_in(uri, config.out))
    if failed:
        shown = "; ".join(printable(f"{bad.uri}: {bad.error}") for bad in failed[:_SHOWN_REASONS])
        more = f"; and {len(failed) - _SHOWN_REASONS} more" if len(failed) > _SHOWN_REASONS else ""
        raise UserError(
            f"images: {len(failed)} of {len({*done} | bad)} could not be read ({shown}{more}): "
            f"the others are in {task.out}, these in its failed.json: fix or remove them and start "
            "again" + (f"; {remark}" if remark else "")
        )
    seconds = round(time.monotonic() - began, 1)
    return PredictionSummary(new, len(done) - new, seconds, task.out, remark)


def _segment_all(
    task: SegmentTask, todo: list[Photo], is_batch: bool, start_ray: Callable[[float], None]
) -> list[PhotoOutcome]:
    """Segments images here or on Ray workers; returns those that could not be read."""
    config, size = task.config, task.config.batch_images
    progress, totals = Progress(len(todo), "images"), ShareTotals()
    failed: list[PhotoOutcome] = []
    by_ray = config.workers is not None or is_batch or len(todo) > config.ray_from
    chunks = [todo[first : first + size] for first in range(0, len(todo), size)]
    if not by_ray and len(task.labels) * len(todo) > MANY_SCORES and not torch.cuda.is_available():
        logger.warning(
            "each of %d images is asked %d labels without a GPU, which takes a second or more of a "
            "core for each: fewer labels are cheaper, and --workers takes more cores",
            len(todo),
            len(task.labels),
        )
    for outcomes in _by_ray(task, chunks, start_ray) if by_ray else _here(task, chunks):
        progress.add(len(outcomes), outcomes[-1].name if outcomes else "")
        for outcome in outcomes:
            if outcome.error:
                logger.warning("%s: %s", printable(outcome.uri), printable(outcome.error))
                failed.append(outcome)
                continue
            totals.add(outcome.shares)
            if len(todo) <= _SHOWN_SHARES:
                found = in_words(outcome.shares, task.labels, task.none_name)
                logger.info("%s: %s", printable(outcome.name), found)
    if totals.num_images > _SHOWN_SHARES:
        found = in_words(totals.means(), task.labels, task.none_name)
        logger.info("mean over %d images: %s", totals.num_images, found)
    return failed


def _task(config: PredictConfig) -> SegmentTask:
    """Makes the task, for which it loads the checkpoint and encodes the prompts once."""
    try:
        use_prefetched()
        folder = local(config.checkpoint)
        lseg = LSeg.load(folder)
        sliding = sliding_of(config, folder)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={config.checkpoint}: {error}") from None
    labels = read_labels(config, lseg.labels)
    other = parse_other(config.other)
    text_TC = lseg.embed_text([*labels, *other.texts]).cpu().numpy()
    where = f"labels_file={config.labels_file}" if config.labels_file else "labels"
    if not config.labels_file and not config.labels.strip():
        logger.info(
            "labels: none given, so that the %d of the checkpoint's training are asked (%s)",
            len(labels),
            ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else ""),
        )
    check_vectors(labels, other, text_TC, where, labels == tuple(lseg.labels))
    return SegmentTask(
        # Workers on other machines fetch it for themselves; a folder must be one that they see.
        checkpoint=config.checkpoint if is_uri(config.checkpoint) else str(folder.resolve()),
        labels=labels,
        text_TC=text_TC,
        none_name=other.texts[0] if len(other.texts) == 1 else "none of these",
        threshold=other.threshold,
        sliding=sliding,
        out=open_storage(config.out).uri,
        config=config,
    )


def _is_in(uri: str, folder: str) -> bool:
    if "://" not in uri and "://" not in folder:
        # Unlike `Path.resolve`, it takes a link that leads to itself.
        uri, folder = os.path.realpath(uri), os.path.realpath(folder)
    return uri.startswith(f"{folder.rstrip('/')}/")


def _claim(out: Storage, task: SegmentTask) -> SegmentTask:
    """Notes how the results are made, and keeps them apart from results made otherwise.

    Where the folder holds results for other labels, these ones get a folder of their own in it.

    Raises:
        UserError: The folder holds results for these labels that were made otherwise.
    """
    config, settings, given = task.config, _settings(task), (out, task)
    different = _different(config.out, out, settings)
    if LABEL_SETTINGS & {*different}:
        folder = f"{out.uri}/{_label_folder(task.labels, settings['other'])}"
        logger.info("%s holds results for other labels: these go to %s", config.out, folder)
        out = open_storage(folder)
        task = replace(task, out=folder)
        different = _different(folder, out, settings)
    if different:
        before = json.loads(out.read(SETTINGS))
        key = different[0]
        raise UserError(
            f"out={config.out}: holds results with another {key} ({_cut(before.get(key))}, "
            f"now {_cut(settings[key])}): give another folder, or delete that one"
        )
    content = (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode()
    if not out.exists(SETTINGS) and not out.create(SETTINGS, content):
        return _claim(*given)  # Another call, perhaps with other settings, came first just now.
    if not out.exists(LABELS):  # Nor did a call that was killed in between write them.
        out.write(LABELS, "".join(f"{label}\n" for label in task.labels).encode())
    return task


def _settings(task: SegmentTask) -> dict[str, Any]:
    config = task.config
    return {
        "checkpoint": config.checkpoint,
        "labels": list(task.labels),
        "other": str(parse_other(config.other)),
        "sliding": json.loads(json.dumps(asdict(task.sliding))),
        "palette": config.palette,
        "precision": config.precision,
        "outputs": [
            name for name in ("overlay", "probabilities", "features") if getattr(config, name)
        ],
        "no_label_id": 255 if len(task.labels) <= 255 else 65_535,
    }


def _different(name: str, out: Storage, settings: dict[str, Any]) -> list[str]:
    """The settings in which the results of a folder were made otherwise; none in a new folder."""
    if not out.exists(SETTINGS):
        return []
    try:
        before = json.loads(out.read(SETTINGS))
        return [key for key in settings if before.get(key) != settings[key]]
    except (ValueError, AttributeError, RecursionError):
        raise UserError(
            f"out={name}: its {SETTINGS} is damaged: delete the folder, or give another"
        ) from None


def _label_folder(labels: Sequence[str], other: str) -> str:
    """A folder's name that says the first labels, and is another for every label set."""
    words = re.sub(r"[^\w]+", "-", "-".join(labels[:4])).strip("-")[:40]
    digest = hashlib.sha256(json.dumps([*labels, other]).encode()).hexdigest()[:6]
    return f"labels-{words}-{digest}".replace("--", "-")


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _here(task: SegmentTask, chunks: Sequence[list[Photo]]) -> Iterator[list[PhotoOutcome]]:
    return map(_segmenter(task).segment, chunks)


def _segmenter(task: SegmentTask) -> Segmenter:
    return Segmenter(task, "cuda" if torch.cuda.is_available() else "cpu")


def _by_ray(
    task: SegmentTask, chunks: Sequence[list[Photo]], start_ray: Callable[[float], None]
) -> Iterator[list[PhotoOutcome]]:
    import ray

    config = task.config
    start_ray(config.workers or 1)
    num_gpus = int(ray.cluster_resources().get("GPU", 0))

    def on_death(death: Death) -> bool:
        if death.of_item < WORKER_DEATHS:
            return True
        raise UserError(
            f"batch_images={config.batch_images}: {death.of_item} workers died over "
            f"{chunks[death.index][0].uri} and those after it ({death.reason}), most likely for "
            "lack of memory: lower batch_images; what is done is kept"
        )

    with Workers(
        partial(_segment_function, task, "cuda" if num_gpus else "cpu"),
        config.workers or num_gpus or None,
        num_gpus=1 if num_gpus else 0,
        runtime_env=worker_runtime_env(task.checkpoint),
        on_death=on_death,
    ) as workers:
        logger.info("%d images on Ray workers", sum(len(chunk) for chunk in chunks))
        for _, outcomes in workers.run(chunks):
            yield outcomes


def _segment_function(
    task: SegmentTask, device: str
) -> Callable[[Sequence[Photo]], list[PhotoOutcome]]:
    return Segmenter(task, device).segment
