"""The configuration of `jobs/evaluate.py`."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.pixels.checks import MAX_SIDE_PX
from pipeline.errors import UserError
from pipeline.tracking.config import TrackingConfig

ProtocolName = Literal[
    "unified",
    "native-names",
    "native-mapped",
    "ade20k-150",
    "pascal-5i",
    "coco-20i",
    "fss-1000",
    "held-out",
    "behaviours",
    "a-150",
    "a-847",
    "pc-59",
    "pc-459",
    "pas-20",
    "pas-20b",
    "coco-stuff-171",
]
"""Names of the protocols, which `pipeline.evaluation.protocols` describes."""

SUITE_PROTOCOLS = ("a-150", "a-847", "pc-59", "pc-459", "pas-20", "pas-20b", "coco-stuff-171")
"""The open-vocabulary suite, each a set of its own."""

MeanRule = Literal["target", "union", "all"]
"""Classes of a mean IoU: those that the labels show (detectron2 since July 2022); those that are
shown or predicted (before it, and MESS); all, of which absent ones count 0."""

Mode = Literal["whole", "single", "published", "squash", "cat-seg", "sed", "fc-clip"]
"""Ways in which the network sees an image, which `Geometry` describes."""

DEFAULT_MODES: dict[str, str] = {
    "ade20k-150": "published",
    "pascal-5i": "squash",
    "coco-20i": "squash",
    "fss-1000": "squash",
    **dict.fromkeys(SUITE_PROTOCOLS, "cat-seg"),
}
"""Default geometry of the protocols that do not see an image as a whole."""


_CALIBRATED = ("unified", "native-names", "native-mapped")
"""Protocols that ask labels which were trained beside others."""


@dataclass(frozen=True, kw_only=True)
class OtherPolicy:
    """How pixels of none of the classes in the label set are predicted."""

    policy: Literal["none", "prompts", "threshold"] = "none"
    """Policy for "other": with `none` the best class wins everywhere; with `prompts` the texts
    below compete, and what they win is none of the classes; with `threshold` a pixel whose best
    class is less probable than `threshold` is none of them. A background class takes these pixels
    where the protocol has one."""
    prompts: tuple[str, ...] = ("other",)
    """Prompts that stand for "none of these"."""
    threshold: float = 0.2
    """Least probability of the best class, over all prompts."""

    def __post_init__(self) -> None:
        if self.policy == "prompts" and not self.prompts:
            raise UserError("other.prompts=[]: must hold a text with other.policy=prompts: add one")
        if not 0 < self.threshold < 1:
            raise UserError(f"other.threshold={self.threshold}: must lie between 0 and 1")

    def __str__(self) -> str:
        details = {"prompts": ": " + ", ".join(self.prompts), "threshold": f" {self.threshold:g}"}
        return self.policy + details.get(self.policy, "")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the network sees an image.

    `whole`: resized to a long side of `base_px`, one forward pass. `single`: windows of `window_px`
    on the image at `base_px`. `published`: LSeg's six scales of `base_px`, each mirrored too, in
    windows; logits summed. `squash`: resized to a square of `window_px` whatever its shape, and
    scored at that size, as the few-shot protocols do. `cat-seg`: resized to a square of `base_px`
    whatever its shape, seen in windows of `window_px`, which overlap by a third, and as a whole at
    that size, and scored at the label's size, as CAT-Seg does. `sed`: resized to a square of
    `base_px` (768), one forward pass, scored at the label's size, as SED does. `fc-clip`: resized
    to a short side of `base_px` (800) and a long one of at most 5/3 of it, one forward pass, as
    FC-CLIP and MAFT+ do.
    """

    mode: Mode = "whole"
    """How the network sees an image: as a whole, in windows, as published, or squashed."""
    base_px: int | None = None
    """Long side of the image at scale 1 (with `cat-seg` and `sed` both sides, with `fc-clip` the
    short one); 0 with `whole` keeps the
    image's size; null: as in the checkpoint's training (520 where it does not say), or as the
    protocol publishes."""
    window_px: int | None = None
    """Side of a window, or of the square to which `squash` resizes; null: as in the checkpoint's
    training (480 where it does not say), or as the protocol publishes."""

    def __post_init__(self) -> None:
        base_px, window_px = self.base_px, self.window_px
        if base_px is not None and base_px < 16 and not (base_px == 0 and self.mode == "whole"):
            raise UserError(
                f"geometry.base_px={self.base_px}: must be at least 16, or 0 with mode whole"
            )
        if window_px is not None and window_px < 16:
            raise UserError(f"geometry.window_px={self.window_px}: must be at least 16")
        for key, value in (("base_px", base_px), ("window_px", window_px)):
            if value is not None and value > MAX_SIDE_PX:
                raise UserError(f"geometry.{key}={value}: must be at most {MAX_SIDE_PX} pixels")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The worker processes of an evaluation, whose number does not change the figures."""

    num_workers: int = 0
    """Number of worker processes; 0 takes one per GPU, or per CPU in a cluster without GPUs."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that each worker holds."""
    threads: int = 1
    """Threads of a worker's CPU kernels; another number may round sums differently."""
    use_gpu: bool | None = None
    """Whether each worker holds a GPU; null: if the cluster has any."""
    max_failures: int = 3
    """Number of times that each worker process may die before the evaluation ends."""
    chunk_images: int = 8
    """Number of images after which a worker's counts are saved."""
    batch_images: int = 4
    """Number of images of one size that go through the network together."""

    def __post_init__(self) -> None:
        for name, least in (("num_workers", 0), ("max_failures", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise UserError(f"workers.{name}={getattr(self, name)}: must be {least} or more")
        for name in ("cpus_per_worker", "chunk_images", "batch_images"):
            if not getattr(self, name) > 0:
                raise UserError(f"workers.{name}={getattr(self, name)}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation of one checkpoint by one protocol."""

    checkpoint: str
    """Checkpoint folder, `s3://...`, or `models:/name@alias` of an MLflow registry."""
    protocol: ProtocolName = "unified"
    """Protocol: which images are scored, in which label set, and how."""
    out: str = "runs/evaluation"
    """Folder for reports and partial results: a directory or `s3://`."""
    shards: str = ""
    """Folder of prepared shards: a directory or `s3://`."""
    roots: dict[str, str] = field(default_factory=dict)
    """Folders of official downloads by dataset, instead of shards or beside them."""
    datasets: tuple[str, ...] = ()
    """Datasets to evaluate on; empty takes all that are found."""
    split: str = "val"
    """Split of the datasets to evaluate on."""
    folds: tuple[int, ...] = (0, 1, 2, 3)
    """Folds of PASCAL-5i and COCO-20i to evaluate."""
    splits: str = ""
    """Folder with HSNet's split lists (`pascal/val/fold0.txt`, `coco/val/fold0.pkl`)."""
    labels: Literal["all", "checkpoint", "native", "unseen", "unseen-alone"] = "all"
    """Label set of protocol unified: `all` of the taxonomy; those of the `checkpoint`, where pixels
    of other classes do not count; each dataset's own words (`native`); or, zero-shot, the `unseen`
    classes that the images show and the checkpoint was not trained on, where pixels of other
    classes should get "other" (`unseen-alone`: do not count)."""
    synonyms: Literal["first", "best"] = "first"
    """What is asked for a class of the open-vocabulary suite: CAT-Seg's first name for it, or all
    of FC-CLIP's, of which the best counts."""
    mean_over: MeanRule | None = None
    """Classes of the mean IoU: those that the labels show (`target`), those that are shown or
    predicted (`union`, as before July 2022 and in MESS), or `all`; null: as the protocol does."""
    calibration: float = 0.0
    """Subtracted from the score (the cosine over 0.07) of each label that the checkpoint was
    trained on, so that labels which it was not can win (calibrated stacking, Chao et al. 2016)."""
    max_images: int = 0
    """Number of images of each dataset, spread evenly over it; 0 takes all."""
    seed: int = 0
    """Seed for sampling COCO-20i episodes (published: 0) and behaviour questions."""
    other: OtherPolicy | None = None
    """How pixels of none of the classes are predicted; null: as the protocol prescribes."""
    geometry: Geometry | None = None
    """How the network sees images; null: as the protocol publishes, else as a whole at the size of
    the checkpoint's training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass."""
    max_bad_share: float = 0.001
    """Share of images that do not decode above which the evaluation ends with an error."""
    examples: int = 6
    """Number of best and of worst images of each dataset on the report's page."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("checkpoint='': must name a checkpoint: a folder, s3://, models:/")
        if self.calibration and self.protocol not in _CALIBRATED:
            raise UserError(
                f"calibration={self.calibration:g}: has no effect on protocol {self.protocol}: use "
                f"one of {', '.join(_CALIBRATED)}, or leave it out"
            )
        if self.calibration and self.labels in ("checkpoint", "unseen-alone"):
            raise UserError(
                f"calibration={self.calibration:g}: has no effect with labels={self.labels}, which "
                "asks no unseen label beside trained ones: use native or all, or leave it out"
            )
        if not -100 <= self.calibration <= 100:
            raise UserError(
                f"calibration={self.calibration}: must lie between -100 and 100: scores lie within "
                "1/0.07 = 14.3"
            )
        for name in ("max_images", "seed", "examples"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share={self.max_bad_share}: must lie between 0 and 1")
        if not self.folds or not set(self.folds) <= {0, 1, 2, 3}:
            raise UserError(f"folds={list(self.folds)}: must be some of 0, 1, 2, 3")
        if self.synonyms != "first" and self.protocol not in SUITE_PROTOCOLS:
            raise UserError(
                f"synonyms={self.synonyms}: has no effect on protocol {self.protocol}: leave it out"
            )
        if self.protocol in SUITE_PROTOCOLS:
            self._check_suite()
        if len(set(self.folds)) < len(self.folds):
            raise UserError(f"folds={list(self.folds)}: each must be there once")

    def _check_suite(self) -> None:
        """Refuses what a set of the suite, which has its own images and classes, does not read."""
        usual = {"shards": "", "split": "val", "splits": "", "labels": "all", "folds": (0, 1, 2, 3)}
        for name, default in usual.items():
            if getattr(self, name) != default:
                raise UserError(
                    f"{name}={getattr(self, name)}: has no effect on protocol {self.protocol}: "
                    "leave it out"
                )

    @property
    def variant(self) -> str:
        """A name for folders and metrics: the protocol, and what departs from its own settings.

        So figures under another policy for "other" never take the place of the protocol's.
        """
        words: list[str] = [self.protocol]
        if self.labels != "all":
            words.append(self.labels)
        usual = DEFAULT_MODES.get(self.protocol, "whole")
        if self.geometry is not None and self.geometry.mode != usual:
            words.append(self.geometry.mode)
        if self.other is not None:
            words.append(f"other-{self.other.policy}")
        if self.split != "val":
            words.append(self.split)
        if self.calibration:
            words.append(f"calibrated-{self.calibration:g}")
        if self.precision != "fp32":
            words.append(self.precision)
        if self.max_images:
            words.append(f"max{self.max_images}")
        # What is changed besides has no short name.
        plain_other = self.other and OtherPolicy(policy=self.other.policy)
        plain_geometry = self.geometry and Geometry(mode=self.geometry.mode)
        rest = {
            "datasets": self.datasets,
            "folds": self.folds if self.folds != (0, 1, 2, 3) else (),
            "seed": self.seed,
            "other": self.other if self.other != plain_other else None,
            "geometry": self.geometry if self.geometry != plain_geometry else None,
        }
        # Named only where given, so that older names stay.
        if self.synonyms != "first":
            words.append(f"{self.synonyms}-synonym")
        if self.mean_over:
            words.append(f"over-{self.mean_over}")
        if any(rest.values()):
            words.append(hashlib.sha256(repr(rest).encode()).hexdigest()[:6])
        return "-".join(words)
