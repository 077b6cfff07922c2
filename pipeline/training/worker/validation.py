"""Validation during training: whole images at one scale, over all workers."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from model.lseg import LSeg
from model.metrics import ConfusionMatrix
from model.sliding import AS_IT_IS
from pipeline.data.ingest.augment import whole_view
from pipeline.data.ingest.stream import SampleReader, open_cache
from pipeline.data.pixels.decode import BadSample
from pipeline.scoring import evenly, predict, read_ahead, space_of
from pipeline.training.plan import RunPlan
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.questions import Questions
from pipeline.training.worker.step_text import StepText

logger = logging.getLogger(__name__)


_MOST_EXAMPLES = 4
"""Images that are kept to be drawn; each dataset has one, if they are not more."""


@dataclass(frozen=True)
class Example:
    """An image of the validation as it was seen."""

    dataset: str
    image: np.ndarray
    """(S, S, 3) uint8 RGB, padded at the right and bottom."""
    target: np.ndarray
    """(S, S) uint8: positions in the labels, or IGNORE."""
    answer: np.ndarray
    """(S, S) int64: positions in the labels."""


@dataclass(frozen=True)
class Validation:
    """The confusion matrices of one validation, complete on every worker."""

    labels: tuple[str, ...]
    matrices: dict[str, ConfusionMatrix]
    """By dataset; classes are positions in `labels`."""
    num_bad: int = 0
    """Images that could not be read, and count nowhere."""
    examples: list[Example] = field(default_factory=list)
    """A few images of worker 0's, the same at every validation."""

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
    text: StepText,
    questions: Questions | EpisodeQuestions,
    plan: RunPlan,
    amp: Any,
    on_image: Callable[[], object] = lambda: None,
) -> Validation:
    """Scores up to `train.val_images` images of each dataset.

    Each worker takes every N-th image; the matrices are summed over workers, so each image
    counts once and the result is the same on every worker, whatever N is.

    Args:
        lseg: The network; its mode is restored afterwards.
        text: Makes the vectors of the labels.
        questions: Which of the labels compete in each dataset.
        plan: Labels, validation split, number of images, and the scale (`data.augment.base_px`).
        amp: Context for the forward pass.
        on_image: Called for each image that was looked at.
    """
    labels, corpus, config = plan.labels, plan.validation, plan.config
    assert corpus is not None
    rank, world = dist.get_rank(), dist.get_world_size()
    reader = SampleReader(corpus, open_cache(config.data, corpus.uri))
    was_training = lseg.training
    lseg.eval()
    matrices: dict[str, ConfusionMatrix] = {}
    examples: list[Example] = []
    text_KC = text.of_all(lseg)
    each = max(1, _MOST_EXAMPLES // len(corpus.sizes)) if rank == 0 else 0
    num_bad = torch.zeros((), dtype=torch.int64, device=text_KC.device)
    for name, size in corpus.sizes.items():
        matrix = ConfusionMatrix(len(labels), device=text_KC.device)
        # A dataset is asked for its own labels only, and answers in all of them.
        competing = questions.labels_of(name)
        space = space_of(labels.names, (), labels.lut, competing.tolist())
        # Spread over the whole split, which is sorted by name; every N-th of them is this worker's.
        indices = evenly(size, config.train.val_images)[rank::world]
        wanted = min(each, _MOST_EXAMPLES - len(examples))
        read = partial(_read_view, reader, name, config.data.augment.base_px)
        for _, view in read_ahead(read, indices, BadSample):
            if isinstance(view, BadSample):  # No reason to end a run.
                logger.warning("validation leaves out %s", view)
                num_bad += 1
                continue
            image, label = view
            with amp:
                ids = predict(lseg, [image], text_KC[competing], space, AS_IT_IS)
            target = space.target(label)
            matrix.update(ids[0], target)
            if wanted > 0:
                examples.append(Example(name, image, target, ids[0].cpu().numpy()))
                wanted -= 1
            on_image()
        dist.all_reduce(matrix.counts)
        matrices[name] = matrix
    dist.all_reduce(num_bad)
    lseg.train(was_training)
    return Validation(labels.names, matrices, int(num_bad), examples)


def _read_view(
    reader: SampleReader, dataset: str, side_px: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (S, S, 3) uint8 RGB and label (S, S) uint8 of a sample as validation sees it."""
    return whole_view(*reader.read(dataset, index), side_px)
