"""The segmentation of many pictures: what is left to do, who does it, and how it ended.

A few pictures are segmented in this process. Prefixes of object storage and large numbers go
through Ray Data: chunks of pictures' places to a pool of actors, each with a network of its own;
only places and outcomes travel.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import is_uri, local
from model.lseg import LSeg
from pipeline.checkpoints.resolvers import pinned, worker_runtime_env
from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig, other_policy, read_labels, sliding_of
from pipeline.inference.photos import Photo, find_photos, is_batch
from pipeline.inference.segmenter import Outcome, Segmenter, Task
from pipeline.progress import Progress
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

SETTINGS = "prediction.json"
LABELS = "labels.txt"
_SHOWN_REASONS = 5


@dataclass(frozen=True)
class Summary:
    """How a segmentation ended."""

    done: int
    """Pictures segmented now."""
    skipped: int
    """Pictures that an earlier run had done."""
    failed: tuple[Outcome, ...]
    seconds: float


def segment_photos(config: PredictConfig, start_ray: Callable[[float], None]) -> Summary:
    """Segments pictures.

    Args:
        config: What, with what, into what.
        start_ray: Called with the number of CPUs where Ray is needed.

    Raises:
        UserError: Pictures, labels or the output folder are not usable; or, at the end, some of the
            pictures could not be read. The others are done then.
        ModelError: The checkpoint cannot be loaded.
    """
    began = time.monotonic()
    photos = find_photos(config.images)
    out = open_storage(config.out)
    # Results of an earlier call are no pictures to segment.
    found, photos = photos, [photo for photo in photos if not _is_in(photo.uri, out.uri)]
    if not photos:
        raise UserError(
            f"out={config.out}: {found[0].uri} lies in it, where results go: give another folder"
        )
    config = replace(config, checkpoint=pinned(config.checkpoint))
    task = _task(config)
    _claim(out, task, config)
    there = {entry.path for entry in out.list()}
    todo = [photo for photo in photos if f"{photo.name}.png" not in there]
    if len(todo) < len(photos):
        logger.info("%d of %d are done already", len(photos) - len(todo), len(photos))
    failed: list[Outcome] = []
    if todo:
        progress = Progress(len(todo), "images")
        by_ray = config.workers is not None or is_batch(config.images)
        by_ray = by_ray or len(todo) > config.ray_from
        run = _by_ray(task, todo, config, start_ray) if by_ray else _here(task, todo, config)
        for outcomes in run:
            progress.add(len(outcomes), outcomes[-1].name if outcomes else "")
            for outcome in outcomes:
                if outcome.error:
                    logger.warning("%s: %s", outcome.uri, outcome.error)
                    failed.append(outcome)
    failures = [{"image": bad.uri, "reason": bad.error} for bad in failed]
    out.write("failed.json", (json.dumps(failures, indent=1) + "\n").encode())
    seconds = time.monotonic() - began
    summary = Summary(
        len(todo) - len(failed), len(photos) - len(todo), tuple(failed), round(seconds, 1)
    )
    if failed:
        shown = "; ".join(f"{bad.uri}: {bad.error}" for bad in failed[:_SHOWN_REASONS])
        more = f"; and {len(failed) - _SHOWN_REASONS} more" if len(failed) > _SHOWN_REASONS else ""
        raise UserError(
            f"images: {len(failed)} of {len(photos)} could not be read ({shown}{more}): the others "
            f"are in {config.out}, these in its failed.json: mend them and start again"
        )
    return summary


def _task(config: PredictConfig) -> Task:
    """Loads the checkpoint once, encodes the texts once."""
    try:
        folder = local(config.checkpoint)
        lseg = LSeg.load(folder)
        sliding = sliding_of(config, folder)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={config.checkpoint}: {error}") from None
    labels = read_labels(config, lseg.labels)
    other = other_policy(config.other)
    return Task(
        # Workers on other machines fetch it for themselves; a folder must be one that they see.
        checkpoint=config.checkpoint if is_uri(config.checkpoint) else str(folder.resolve()),
        labels=labels,
        text_TC=lseg.embed_text([*labels, *other.texts]).cpu().numpy(),
        none_name=other.texts[0] if len(other.texts) == 1 else "none of these",
        threshold=other.threshold,
        sliding=sliding,
        out=open_storage(config.out).uri,
        overlay=config.overlay,
        palette=config.palette,
        probabilities=config.probabilities,
        features=config.features,
        precision=config.precision,
    )


def _is_in(uri: str, folder: str) -> bool:
    if "://" not in uri and "://" not in folder:
        uri, folder = str(Path(uri).resolve()), str(Path(folder).resolve())
    return uri.startswith(f"{folder.rstrip('/')}/")


def _claim(out: Storage, task: Task, config: PredictConfig) -> None:
    """Notes how the results are made, and refuses a folder of results made otherwise."""
    settings: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "labels": list(task.labels),
        "other": str(other_policy(config.other)),
        "sliding": json.loads(json.dumps(asdict(task.sliding))),
        "palette": task.palette,
        "precision": task.precision,
        "outputs": [
            name for name in ("overlay", "probabilities", "features") if getattr(task, name)
        ],
        "no_label_id": 255 if len(task.labels) <= 255 else 65_535,
    }
    if out.exists(SETTINGS):
        try:
            before = json.loads(out.read(SETTINGS))
            different = [key for key in settings if before.get(key) != settings[key]]
        except (ValueError, AttributeError):
            raise UserError(
                f"out={config.out}: its {SETTINGS} is damaged: delete the folder, or give another"
            ) from None
        if different:
            key = different[0]
            raise UserError(
                f"out={config.out}: holds results with another {key} ({_short(before.get(key))}, "
                f"now {_short(settings[key])}): give another folder, or delete that one"
            )
        return
    out.write(LABELS, "".join(f"{label}\n" for label in task.labels).encode())
    out.write(SETTINGS, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _chunks(photos: Sequence[Photo], size: int) -> Iterator[list[Photo]]:
    for first in range(0, len(photos), size):
        yield list(photos[first : first + size])


def _here(task: Task, photos: Sequence[Photo], config: PredictConfig) -> Iterator[list[Outcome]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    segmenter = Segmenter(task, device)
    for chunk in _chunks(photos, config.batch_images):
        yield segmenter.segment(chunk)


class _Worker:
    """The actor: chunks of places in, outcomes out."""

    def __init__(self, task: Task, num_gpus: float) -> None:
        self._segmenter = Segmenter(task, "cuda" if num_gpus else "cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outcomes = [
            outcome
            for chunk in batch["photos"]
            for outcome in self._segmenter.segment([Photo(**p) for p in json.loads(chunk)])
        ]
        return {"outcomes": [json.dumps([asdict(outcome) for outcome in outcomes])]}


def _by_ray(
    task: Task,
    photos: Sequence[Photo],
    config: PredictConfig,
    start_ray: Callable[[float], None],
) -> Iterator[list[Outcome]]:
    import ray
    import ray.data

    # One CPU beyond the workers' for Ray Data's own tasks.
    start_ray((config.workers or 1) + 1)
    resources = ray.cluster_resources()
    num_gpus = 1 if resources.get("GPU", 0) else 0
    there = int(resources["GPU"]) if num_gpus else max(1, int(resources.get("CPU", 1)) - 1)
    chunks = list(_chunks(photos, config.batch_images))
    workers = min(config.workers or there, len(chunks))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger.info("%d images on %d Ray workers", len(photos), workers)
    rows = [{"photos": json.dumps([asdict(photo) for photo in chunk])} for chunk in chunks]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(task, num_gpus),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=None if num_gpus else 1,
        num_gpus=num_gpus or None,
        runtime_env=worker_runtime_env(task.checkpoint),
    )
    for row in outcomes.iter_rows():
        yield [Outcome(**values) for values in json.loads(row["outcomes"])]
