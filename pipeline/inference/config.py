"""The configuration of `jobs/predict.py`, and what it means for one checkpoint."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from model.label_twins import label_twins
from pipeline.checkpoints.label_list import read_label_list, require_short, short_label
from pipeline.data.pixels.checks import MAX_SIDE_PX
from pipeline.data.pixels.palette import PaletteName
from pipeline.data.taxonomy import spelling
from pipeline.errors import UserError
from pipeline.inference.formats import FormatName

if TYPE_CHECKING:
    from model.sliding import SlidingConfig
    from pipeline.checkpoints.provenance import TrainedSize

logger = logging.getLogger(__name__)

MAX_LABELS = 65_535
"""What an index PNG of 16 bits can tell apart, with one more for no label."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A prediction: which images to segment, with which label set, into which folder."""

    checkpoint: str
    """Checkpoint folder, `s3://bucket/folder`, or `models:/name@alias`."""

    images: tuple[str, ...] = ()
    """Images: files, folders, patterns or `s3://` prefixes; they may also be the first words of the
    command line. Video files on this machine may be named too: each frame is segmented alone."""

    labels: str = ""
    """Label set: any texts, separated by commas ("dog, grass, traffic light"). Without these and
    without a file it is the one that the checkpoint was trained on."""

    labels_file: str | None = None
    """Text file with the label set, one label per line."""

    other: str = "none"
    """Policy for pixels of none of the labels: `none` gives each pixel its best label; a number
    (0.4) leaves out pixels whose best label is less probable; any other texts, separated by commas
    ("other"), compete as labels, and the pixels that they win are left out."""

    out: str = "predictions"
    """Folder for the results, local or `s3://`. Images that it already holds are skipped."""

    overlay: bool = True
    """Whether to write an image for people too: NAME.overlay.jpg."""

    format: FormatName = "none"
    """Form in which the results are written a second time, in a folder of its name in `out`:
    `coco-panoptic` (one segment a label), or the forms that the servers of `cityscapes` and
    `ade20k` take, for labels that are their classes. It may be added to what is there."""

    palette: PaletteName = "distinct"
    """Colours of the labels: `distinct`, or `colour-blind` (safe ones, with textures beyond
    eight)."""

    probabilities: bool = False
    """Whether to write each label's probability too: NAME.probabilities.npy, (K, H, W) float16,
    with one more row where `other` is texts."""

    features: bool = False
    """Whether to write the pixel vectors too: NAME.features.npy, (C, h, w) float16 of length 1 over
    C, at half the size that the network sees."""

    view: Literal["single", "published", "whole"] = "single"
    """How the network sees an image. `single`: windows at one scale; `published`: six scales and
    mirror images, as for the figures on ADE20K, at some twenty times the cost; `whole`: one forward
    pass."""

    base_px: int | None = None
    """Long side at which the network sees an image at scale 1; not set: as in the checkpoint's
    training (520 where it does not say)."""

    window_px: int | None = None
    """Side of the windows; not set: as in the checkpoint's training (480)."""

    full_size: bool = False
    """Whether the network sees images at their own size instead of `base_px`, at more cost."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass; `bf16` is for GPUs."""

    batch_images: int = 8
    """Number of images read at a time; those of one size go through the network together."""

    every: int = 1
    """Step between a video's frames that are segmented; 5 takes every fifth, from the first."""

    workers: int | None = None
    """Number of Ray workers; not set: none for files and folders, as many as there are GPUs (or
    CPUs) for `s3://` prefixes and for more than `ray_from` images."""

    ray_from: int = 500
    """Number of images above which they are spread over Ray workers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        if self.labels.strip() and self.labels_file:
            raise UserError("labels_file: labels is set too: give one of them")
        for name in ("batch_images", "every", "ray_from", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        for name in ("base_px", "window_px"):
            value = getattr(self, name)
            if value is not None and not 8 <= value <= MAX_SIDE_PX:
                raise UserError(f"{name}={value}: must be 8 to {MAX_SIDE_PX} pixels")
        if self.full_size and self.features:
            raise UserError(
                "features: full_size is set too, and the vectors of a whole photo at its own size "
                "do not fit into memory: set one of them"
            )
        if self.full_size and self.base_px is not None:
            raise UserError("base_px: full_size is set too, which does not use it: set one of them")
        if self.view == "whole" and self.window_px is not None:
            raise UserError("window_px: view=whole has no windows: leave it out")
        parse_other(self.other)


@dataclass(frozen=True)
class Other:
    """How pixels of none of the labels are predicted."""

    texts: tuple[str, ...] = ()
    """Labels that compete, and leave out what they win."""
    threshold: float | None = None
    """The least probability that a pixel's best label must have."""

    def __str__(self) -> str:
        if self.texts:
            return f"words: {', '.join(self.texts)}"
        return "none" if self.threshold is None else f"threshold {self.threshold:g}"


def parse_other(value: str) -> Other:
    """Reads `none`, a probability, or texts.

    Raises:
        UserError: It is none of these.
    """
    if value.strip().lower() == "none":
        return Other()
    try:
        threshold = float(value)
    except ValueError:
        return Other(texts=_split(value, "other"))
    if not 0 < threshold < 1:
        raise UserError(
            f"other={value}: must be a probability between 0 and 1, texts, or none: a label that "
            "is a number needs a text beside it"
        )
    return Other(threshold=threshold)


def read_labels(config: PredictConfig, trained: Sequence[str]) -> tuple[str, ...]:
    """Reads the label set that is configured, else that of the checkpoint, `trained`.

    Raises:
        UserError: There are none, or one twice, or one that is "other" too.
    """
    where = "labels"
    if config.labels_file:
        where = f"labels_file={config.labels_file}"
        labels = read_label_list(config.labels_file, where)
    elif config.labels.strip():
        labels = _split(config.labels, "labels")
    else:
        labels = tuple(trained)
    if not 0 < len(labels) <= MAX_LABELS:
        raise UserError(f"{where}: names {len(labels)} labels: must be 1 to {MAX_LABELS}")
    for label in labels:
        require_short(label, where)
        if label.splitlines() != [label] or not _is_encodable(label):
            raise UserError(
                f"{where}: names {label!r}: a label must be one line of text: write it anew"
            )
    twice = sorted(label for label, number in Counter(labels).items() if number > 1)
    if twice and labels != tuple(trained):
        raise UserError(f"{where}: names {twice[0]!r} twice: the second would never win: drop it")
    both = [text for text in parse_other(config.other).texts if text in labels]
    if both:
        raise UserError(f"other={both[0]}: is one of the labels too: drop it from one of them")
    return labels


def check_vectors(
    labels: Sequence[str], other: Other, text_TC: np.ndarray, where: str, is_trained: bool
) -> None:
    """Refuses labels that are the same to the text encoder, of which rounding would choose one.

    Args:
        labels: The label set.
        other: The policy, whose texts compete too.
        text_TC: (T, C) vectors of the labels, then of the texts.
        where: The setting that holds the labels.
        is_trained: The label set is that of the checkpoint, which may hold such labels.

    Raises:
        UserError: Names the first such pair.
    """
    names = [*labels, *other.texts]
    for first, later in label_twins(text_TC):
        if later < len(labels):
            if is_trained:
                logger.warning(
                    "%s: %r is the same to the text encoder as %r, which was trained too: "
                    "rounding decides which of them wins",
                    where,
                    short_label(names[later]),
                    short_label(names[first]),
                )
                continue
            raise UserError(
                f"{where}: {short_label(names[first])!r} and {short_label(names[later])!r} are the "
                "same to the text encoder, so that rounding would choose one: drop one, or choose "
                "other words"
            )
        if first < len(labels):
            raise UserError(
                f"other={short_label(names[later])}: is the same to the text encoder as the label "
                f"{short_label(names[first])!r}: drop it from one of them"
            )
    if not is_trained:
        _check_spelling(labels, where)


def sliding_of(config: PredictConfig, checkpoint: Path) -> "SlidingConfig":
    """The views that the network takes: as the local checkpoint was trained, unless configured."""
    # Imported here, because a command line is checked without PyTorch.
    from pipeline.checkpoints.provenance import read_provenance

    return sliding_for(config, read_provenance(checkpoint).trained_size)


def sliding_for(config: PredictConfig, trained: "TrainedSize") -> "SlidingConfig":
    """The views that the network takes: as `trained`, unless configured."""
    from model.sliding import PUBLISHED, SINGLE_SCALE

    base_px = None if config.full_size else config.base_px or trained.base_px
    window_px = config.window_px or trained.crop_px
    return replace(
        PUBLISHED if config.view == "published" else SINGLE_SCALE,
        base_px=base_px,
        window_px=None if config.view == "whole" else window_px,
    )


def _check_spelling(labels: Sequence[str], where: str) -> None:
    """Refuses labels that look the same to a reader, whatever their vectors are."""
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(spelling(label), label)
        if other is not label:
            raise UserError(
                f"{where}: {other!a} and {label!a} are one label in two spellings: drop one, or "
                "choose other words"
            )


def _is_encodable(text: str) -> bool:
    """Whether a text is whole, as an argument of the command line in another encoding is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(text: str, where: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f"{where}={text!r}: names nothing: write texts separated by commas")
    return parts
