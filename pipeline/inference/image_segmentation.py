"""One call from an image to a list of label, score and mask, as transformers' pipelines give it.

    from pipeline.inference.image_segmentation import pipeline

    segment = pipeline("image-segmentation", model="runs/mine/checkpoint")
    for part in segment("photo.jpg", candidate_labels=["dog", "wet grass"]):
        part["label"], part["score"], part["mask"]

Its arguments have the names of `transformers.pipeline("image-segmentation")`, and its answers the
form: one list for one image, a list of lists for a list, an iterator for an iterator, masks as
images of mode "L" with 0 and 255. Arguments that change nothing for transformers' semantic networks
are taken, and change nothing here (`WithoutEffect`). `candidate_labels` has the name that
transformers' zero-shot pipelines give it. There, a semantic network gives no score; here it is the
mean probability of a mask's pixels, and `threshold` is compared with it.

Not taken are addresses and base64 of images, the subtasks "panoptic" and "instance", and arguments
of `transformers.pipeline` about its own models, such as `torch_dtype` and `trust_remote_code`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import IOBase
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from model.checkpoint import local
from model.settings_file import shown
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


class WithoutEffect(TypedDict, total=False):
    """Arguments of transformers' pipelines that do not change what a semantic network answers."""

    mask_threshold: float
    """Where a network that separates instances cuts its masks; here each pixel gets one label."""
    overlap_mask_area_threshold: float
    """Which parts of overlapping masks such a network drops; here no two masks overlap."""
    batch_size: int
    """Images that go through a network together; here one after the other does."""
    num_workers: int
    """Processes that load images; here the calling one does."""
    timeout: float | None
    """Seconds for fetching an image; here nothing is fetched."""


@dataclass(frozen=True)
class ImageSegmentation:
    """A loaded network that answers with segments; `pipeline` makes it."""

    network: ServedNetwork
    defaults: dict[str, Any]
    """What is asked where a call does not say: `labels`, `other`, `view`, `base_px`."""
    threshold: float = 0.0
    """Least score of a label where a call does not say."""

    def __call__(
        self,
        inputs: Any = None,
        candidate_labels: str | Sequence[str] | None = None,
        *,
        images: Any = None,
        other: str | None = None,
        threshold: float | None = None,
        subtask: Literal["semantic"] | None = None,
        **without_effect: Unpack[WithoutEffect],
    ) -> Any:
        """Segments one image, or several.

        Args:
            inputs: A file's path, a PIL image or an (H, W, 3) uint8 RGB array; a list of them; or
                an iterator over them, or a PyTorch dataset of them.
            candidate_labels: Any texts, as a list or separated by commas; None: those of
                `pipeline`, else those that the checkpoint was trained on.
            other: The policy for pixels of none of the labels, as in `jobs/predict.py --other`:
                "none", texts that compete ("other"), or a probability ("0.4"). Their pixels are in
                no mask. None: that of `pipeline`.
            images: Another name of `inputs`, which transformers knows.
            threshold: Leaves out the labels whose score is lower. None: that of `pipeline`.
            subtask: "semantic" or None, which are the same: the network separates no instances.
            without_effect: See `WithoutEffect`.

        Returns:
            A list of `Segment` in the order of the labels, those that are found alone; for a list
            of images, a list of such lists; for an iterator or a dataset, an iterator over such
            lists, which takes an image when its answer is asked for.

        Raises:
            UserError: An argument or an image is not usable; an image of an iterator, when it is
                its turn.
        """
        if (inputs is None) == (images is None):
            said = "is missing" if inputs is None else "images is given too, which is the same"
            raise UserError(f"inputs: {said}: must be an image, or several: name them once")
        inputs = images if inputs is None else inputs
        threshold = self.threshold if threshold is None else threshold
        _check_arguments(subtask, threshold, without_effect)
        asked = dict(self.defaults)
        if candidate_labels is not None:
            asked["labels"] = _texts(candidate_labels)
        if other is not None:
            asked["other"] = other
        question = self.network.question(asked)

        def answer(image: Any) -> list[Segment]:
            return [part for part in self._segment(image, question) if part["score"] >= threshold]

        if isinstance(inputs, list | tuple):
            return [answer(image) for image in inputs]
        if isinstance(inputs, Dataset):
            return map(answer, _items(inputs))
        # A file is an iterator too, over its lines.
        if isinstance(inputs, Iterator) and not isinstance(inputs, IOBase):
            return map(answer, inputs)
        return answer(inputs)

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
    device: int | str | torch.device | None = None,
    candidate_labels: str | Sequence[str] = (),
    other: str = "none",
    view: Literal["single", "published", "whole"] = "single",
    base_px: int = 0,
    threshold: float = 0.0,
    subtask: Literal["semantic"] | None = None,
    **without_effect: Unpack[WithoutEffect],
) -> ImageSegmentation:
    """Loads a network for calls with images.

    Args:
        task: "image-segmentation".
        model: A checkpoint: a folder, `hf://owner/name`, `s3://bucket/folder` or
            `models:/name@alias`.
        device: Where the network goes: -1 for the CPU, a number from 0 for that GPU, or PyTorch's
            name of a device; None: the GPU where there is one.
        candidate_labels: Labels of calls that name none; empty: those of the training.
        other: The policy of calls that give none, see `ImageSegmentation.__call__`.
        view: How the network sees an image, see `jobs/predict.py --view`.
        base_px: Long side at which it sees an image; 0: as in its training.
        threshold: The least score of calls that give none.
        subtask: "semantic" or None, which are the same.
        without_effect: See `WithoutEffect`.

    Raises:
        UserError: An argument is not usable, or the checkpoint is missing.
        ModelError: The checkpoint cannot be loaded.
    """
    if task != TASK:
        raise UserError(f"task={task!r}: must be {TASK!r}, which is what an LSeg network does")
    if not model:
        raise UserError("model: must name a checkpoint: a folder, hf://, s3:// or models:/")
    _check_arguments(subtask, threshold, without_effect)
    where = _device(device)
    use_prefetched()
    try:
        network = ServedNetwork(local(model), where, _LIMITS)
    except FileNotFoundError as error:
        raise UserError(f"model={model}: {error}") from None
    defaults = {"other": other, "view": view, "base_px": base_px}
    if labels := _texts(candidate_labels):
        defaults["labels"] = labels
    made = ImageSegmentation(network, defaults, threshold)
    if labels or network.labels:
        network.question(defaults)  # So that a mistake is told here, and not at the first image.
    return made


def _check_arguments(subtask: Any, threshold: Any, without_effect: Mapping[str, Any]) -> None:
    """Refuses values that transformers would refuse, and what the network cannot do."""
    if subtask not in (None, "semantic"):
        raise UserError(
            f"subtask={subtask!r}: must be 'semantic': the network separates no instances"
        )
    known = WithoutEffect.__annotations__
    for name in without_effect:
        if name not in known:
            close = get_close_matches(name, [*known, "threshold", "subtask", "inputs"], n=1)
            hint = f"did you mean {close[0]}?" if close else "leave it out"
            raise UserError(f"{name}: is no argument of this pipeline: {hint}")
    shares = {"threshold": threshold}
    shares |= {key: value for key, value in without_effect.items() if "threshold" in key}
    for name, value in shares.items():
        if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
            raise UserError(f"{name}={shown(value)}: must be a probability, 0 to 1: correct it")


def _device(given: int | str | torch.device | None) -> torch.device:
    """The device that an argument means, after a look whether it is there."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if isinstance(given, bool):
            raise TypeError("is no number")
        if isinstance(given, int | np.integer):
            given = "cpu" if given == -1 else f"cuda:{given}"
        device = torch.device(given)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"device={given}: cannot be used here ({reason}): must be -1 (the CPU), the number of "
            "a GPU of this machine from 0, or PyTorch's name of a device: leave it out for the "
            "GPU where there is one"
        ) from None
    return device


def _items(dataset: Any) -> Iterable[Any]:
    """The items of a PyTorch dataset, which may have a length in place of an iterator."""
    if hasattr(dataset, "__len__"):
        return (dataset[number] for number in range(len(dataset)))
    return iter(dataset)


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
            "uint8 RGB array, or a list, an iterator or a dataset of them"
        )
    name = shown(str(given))[1:-1]
    if "://" in name or name.startswith("data:"):
        raise UserError(
            f"inputs={name}: must be a file on this machine: nothing is fetched, since whoever "
            "writes an address would choose what this machine asks, and whom: fetch it yourself, "
            "and give the file or the PIL image"
        )
    try:
        return decode_photo(Path(given).read_bytes())
    except (BadSample, OSError, ValueError) as error:  # A name may hold a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"inputs={name}: cannot be read: {reason}") from None
