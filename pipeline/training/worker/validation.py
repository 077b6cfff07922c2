"""Validation during training: whole pictures at one scale, over all workers."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from model.lseg import LSeg
from model.metrics import ConfusionMatrix
from model.sliding import AS_IT_IS, sliding_label_ids
from pipeline.data.ingest.augment import whole_view
from pipeline.data.ingest.stream import Corpus, SampleReader, open_cache
from pipeline.data.pixels.checks import BadSample
from pipeline.data.shards.format import find_manifests
from pipeline.errors import UserError, did_you_mean
from pipeline.storage.open import open_storage
from pipeline.training.config import TrainMixConfig
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.questions.questions import Questions

logger = logging.getLogger(__name__)


def validation_corpus(config: TrainMixConfig, training: Corpus) -> Corpus | None:
    """The pictures to validate on, read in the classes of the training; None where there are none.

    Args:
        config: Of the run.
        training: The datasets that are trained.

    Raises:
        UserError: A dataset that `train.val_datasets` or `train.keep_best` names is not there.
    """
    split, chosen = config.data.val_split, config.train.val_datasets
    there = find_manifests(open_storage(config.data.shards), split)
    if isinstance(chosen, tuple):
        for name in chosen:
            if name not in there:
                raise UserError(
                    f"train.val_datasets={list(chosen)}: {config.data.shards} has no split "
                    f"{split!r} of {name}: leave it out{did_you_mean(name, there)}"
                )
    else:
        chosen = tuple(there) if chosen == "all" else tuple(training.manifests)
    manifests = {name: manifest for name, manifest in there.items() if name in chosen}
    if not manifests:
        logger.warning("no shards of split %r: no validation", split)
        return None
    best = config.train.keep_best.split("/")[1:-1]
    if best and best[0] not in manifests:
        raise UserError(
            f"train.keep_best={config.train.keep_best}: validated are {', '.join(manifests)}: name "
            "one of them, or add the dataset to train.val_datasets"
        )
    return Corpus(config.data.shards, split, manifests, training.taxonomy)


@dataclass(frozen=True)
class Validation:
    """Confusion matrices of one validation, complete on every worker."""

    labels: tuple[str, ...]
    matrices: dict[str, ConfusionMatrix]
    """By dataset; classes are positions in `labels`."""
    num_bad: int = 0
    """Pictures that could not be read, and count nowhere."""

    def metrics(self) -> dict[str, float]:
        """`val/<dataset>/miou` and `/pixel_accuracy`, and their means as `val/miou`, ...

        Figures of a dataset of which nothing could be scored (see `unscored`) are NaN, and do not
        enter the means unless there are no others.
        """
        metrics = {}
        for name, matrix in self.matrices.items():
            # Over the classes that the dataset shows: it is not blamed for those it lacks.
            metrics[f"val/{name}/miou"] = matrix.miou(over="target")
            metrics[f"val/{name}/pixel_accuracy"] = matrix.pixel_accuracy()
        scored = [name for name in self.matrices if name not in self.unscored]
        for figure in ("miou", "pixel_accuracy"):
            values = [metrics[f"val/{name}/{figure}"] for name in scored]
            metrics[f"val/{figure}"] = float(np.mean(values)) if values else math.nan
        metrics["val/bad_samples"] = float(self.num_bad)
        return metrics

    @property
    def unscored(self) -> list[str]:
        """Datasets without a pixel of any label."""
        return [name for name, matrix in self.matrices.items() if not matrix.counts.any()]

    def table(self) -> str:
        """IoU of each class in each dataset, as aligned text."""
        names = list(self.matrices)
        width = max(map(len, self.labels))
        lines = ["IoU".ljust(width) + "".join(f"  {name:>13}" for name in names)]
        columns = [self.matrices[name].iou_per_class().tolist() for name in names]
        for row, label in enumerate(self.labels):
            cells = [column[row] for column in columns]
            if any(cell == cell for cell in cells):
                text = "".join(f"  {'-' if c != c else f'{c:.3f}':>13}" for c in cells)
                lines.append(label.ljust(width) + text)
        return "\n".join(lines) + "\n"


@torch.no_grad()
def validate(
    lseg: LSeg,
    questions: Questions | EpisodeQuestions,
    labels: LabelSpace,
    corpus: Corpus,
    config: TrainMixConfig,
    amp: Any,
) -> Validation:
    """Scores up to `train.val_images` pictures of each dataset.

    Each worker takes every N-th picture; the matrices are summed over workers, so each picture
    counts once and the result is the same on every worker, whatever N is.

    Args:
        lseg: The network; its mode is restored afterwards.
        questions: The text vectors of `labels`, and which of them compete in each dataset.
        labels: What to predict among.
        corpus: The validation split.
        config: Number of pictures, and the scale (`data.augment.base_px`).
        amp: Context for the forward pass.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    reader = SampleReader(corpus, open_cache(config.data, corpus.uri))
    was_training = lseg.training
    lseg.eval()
    matrices = {}
    text_KC = questions.text_KC
    num_bad = torch.zeros((), dtype=torch.int64, device=text_KC.device)
    for name, size in corpus.sizes.items():
        matrix = ConfusionMatrix(len(labels), device=text_KC.device)
        competing = questions.labels_of(name)
        count = min(size, config.train.val_images or size)
        # Spread over the whole split, which is sorted by name.
        indices = [i * size // count for i in range(rank, count, world)]
        for image, label in _views(reader, name, indices, config.data.augment.base_px):
            if image is None:
                num_bad += 1
                continue
            target = torch.from_numpy(labels.lut[label].astype(np.int64))
            with amp:
                batch = lseg.normalize(torch.from_numpy(image)[None])
                ids = sliding_label_ids(lseg, batch, text_KC[competing], AS_IT_IS)
            matrix.update(competing[ids[0]], target.to(text_KC.device))
        dist.all_reduce(matrix.counts)
        matrices[name] = matrix
    dist.all_reduce(num_bad)
    lseg.train(was_training)
    return Validation(labels.names, matrices, int(num_bad))


def _views(reader: SampleReader, dataset: str, indices: list[int], side_px: int) -> Any:
    """Reads ahead on a thread: (image (S, S, 3) uint8, label (S, S) uint8), in order.

    Two times None for one that cannot be read: that is logged, and no reason to end a run.
    """

    def view(index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            return whole_view(*reader.read(dataset, index), side_px)
        except BadSample as error:
            logger.warning("validation leaves out %s", error)
            return None, None

    with ThreadPoolExecutor(1, thread_name_prefix="validation") as pool:
        pending = [pool.submit(view, index) for index in indices[:4]]
        for index in [*indices[4:], *([None] * len(pending))]:
            yield pending.pop(0).result()
            if index is not None:
                pending.append(pool.submit(view, index))
