"""One call from an image to a list of label, score and mask, as transformers' pipelines give it.

    from pipeline.inference.image_segmentation import pipeline

    segment = pipeline("image-segmentation", model="runs/mine/checkpoint")
    for part in segment("photo.jpg", candidate_labels=["dog", "wet grass"]):
        part["label"], part["score"], part["mask"]

Code that was written for `transformers.pipeline("image-segmentation")` goes on with it: the same
argument names, one list for one image and a list of lists for several, masks as images of mode "L"
with 0 and 255. `candidate_labels` has the name that transformers' zero-shot pipelines give it.
There, a semantic network gives no score; here it is the mean probability of a mask's pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps

from model.checkpoint import local
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from pipeline.inference.config import MAX_LABELS
from pipeline.inference.photos import decode_photo
from pipeline.inference.readout import probability_bands
from pipeline.inference.served_limits import Limits
from pipeline.inference.served_network import Question, ServedNetwork

TASK = "image-segmentation"

# The caller's own images on the caller's own machine: only what no network could do is refused.
_LIMITS = Limits(max_labels=MAX_LABELS, max_base_px=8192)


class Segment(TypedDict):
    """What an image shows of one label."""

    label: str
    score: float
    """Mean probability of the label over the mask's pixels, 0 to 1."""
    mask: Image.Image
    """Mode "L", of the image's size: 255 where the label is, else 0."""


@dataclass(frozen=True)
class ImageSegmentation:
    """A loaded network that answers with segments; `pipeline` makes it."""

    network: ServedNetwork
    defaults: dict[str, Any]
    """What is asked where a call does not say: `labels`, `other`, `view`, `base_px`."""

    def __call__(
        self,
        inputs: Any,
        candidate_labels: str | Sequence[str] | None = None,
        *,
        other: str | None = None,
        threshold: float = 0.0,
        subtask: Literal["semantic"] | None = None,
    ) -> Any:
        """Segments one image, or several.

        Args:
            inputs: A file's path, a PIL image or an (H, W, 3) uint8 RGB array; or a list of them.
            candidate_labels: Any texts, as a list or separated by commas; None: those of
                `pipeline`, else those that the checkpoint was trained on.
            other: The policy for pixels of none of the labels, as in `jobs/predict.py --other`:
                "none", texts that compete ("other"), or a probability ("0.4"). Their pixels are in
                no mask. None: that of `pipeline`.
            threshold: Leaves out the labels whose score is lower.
            subtask: "semantic" or None, which are the same: the network separates no instances.

        Returns:
            A list of `Segment` in the order of the labels, those that are found alone; for a list
            of images, a list of such lists.

        Raises:
            UserError: An argument or an image is not usable.
        """
        if subtask not in (None, "semantic"):
            raise UserError(
                f"subtask={subtask!r}: must be 'semantic': the network separates no instances"
            )
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold!r}: must be a probability, 0 to 1")
        asked = dict(self.defaults)
        if candidate_labels is not None:
            asked["labels"] = _texts(candidate_labels)
        if other is not None:
            asked["other"] = other
        question = self.network.question(asked)
        is_one = not isinstance(inputs, list | tuple)
        found = [
            [part for part in self._segment(each, question) if part["score"] >= threshold]
            for each in ([inputs] if is_one else inputs)
        ]
        return found[0] if is_one else found

    def _segment(self, given: Any, question: Question) -> list[Segment]:
        image, network = _pixels(given), self.network
        size, num_labels = (image.shape[0], image.shape[1]), len(question.labels)
        ids = np.empty(size, np.int64)
        sums = np.zeros(num_labels)
        with torch.inference_mode():
            batch = network.lseg.normalize(torch.from_numpy(network.see(image, question)[None]))
            # By bands of rows, because all probabilities of a photo may not fit into memory.
            for rows, probabilities, best in probability_bands(
                network.lseg,
                batch,
                network.vectors(question),
                num_labels,
                question.sliding,
                size,
                question.other.threshold,
            ):
                ids[rows] = best[0]
                is_label = best[0] >= 0
                won = np.take_along_axis(probabilities[0], np.maximum(best, 0), 0)[0]
                sums += np.bincount(
                    best[0][is_label], won[is_label].astype(np.float64), minlength=num_labels
                )
        return [
            Segment(
                label=question.labels[number],
                score=float(sums[number] / np.count_nonzero(ids == number)),
                mask=Image.fromarray(np.where(ids == number, 255, 0).astype(np.uint8)),
            )
            for number in np.unique(ids[ids >= 0])
        ]


def pipeline(
    task: str = TASK,
    model: str | Path = "",
    *,
    device: str | torch.device | None = None,
    candidate_labels: str | Sequence[str] = (),
    other: str = "none",
    view: Literal["single", "published", "whole"] = "single",
    base_px: int = 0,
) -> ImageSegmentation:
    """Loads a network for calls with images.

    Args:
        task: "image-segmentation".
        model: A checkpoint: a folder, `hf://owner/name`, `s3://bucket/folder` or
            `models:/name@alias`.
        device: Where the network goes; None: the GPU where there is one.
        candidate_labels: Labels of calls that name none; empty: those of the training.
        other: The policy of calls that give none, see `ImageSegmentation.__call__`.
        view: How the network sees an image, see `jobs/predict.py --view`.
        base_px: Long side at which it sees an image; 0: as in its training.

    Raises:
        UserError: The task is another, or the checkpoint is missing.
        ModelError: The checkpoint cannot be loaded.
    """
    if task != TASK:
        raise UserError(f"task={task!r}: must be {TASK!r}, which is what an LSeg network does")
    if not model:
        raise UserError("model: must name a checkpoint: a folder, hf://, s3:// or models:/")
    use_prefetched()
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        network = ServedNetwork(local(model), where, _LIMITS)
    except FileNotFoundError as error:
        raise UserError(f"model={model}: {error}") from None
    defaults = {"other": other, "view": view, "base_px": base_px}
    if labels := _texts(candidate_labels):
        defaults["labels"] = labels
    made = ImageSegmentation(network, defaults)
    if labels or network.labels:
        network.question(defaults)  # So that a mistake is told here, and not at the first image.
    return made


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(given, str):
        return tuple(given)
    return tuple(text.strip() for text in given.split(",") if text.strip())


def _pixels(given: Any) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB, the right way up."""
    if isinstance(given, Image.Image):
        return np.array(ImageOps.exif_transpose(given).convert("RGB"))
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise UserError(
                f"inputs: an array of {given.dtype} and shape {given.shape}: must be (H, W, 3) "
                "uint8 RGB: convert it"
            )
        return np.ascontiguousarray(given)
    if not isinstance(given, str | Path):
        raise UserError(
            f"inputs: a {type(given).__name__}: must be a file's path, a PIL image, an (H, W, 3) "
            "uint8 RGB array, or a list of them"
        )
    if "://" in str(given):
        raise UserError(f"inputs={given}: must be a file: nothing is fetched; open it yourself")
    try:
        return decode_photo(Path(given).read_bytes())
    except (BadSample, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"inputs={given}: cannot be read: {reason}") from None
