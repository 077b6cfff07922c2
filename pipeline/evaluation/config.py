"""The configuration of `jobs/evaluate.py`."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

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
]
"""See `pipeline.evaluation.protocols`."""

Mode = Literal["whole", "single", "published", "squash"]
"""How the network sees a picture; see `Geometry`."""


DEFAULT_MODES: dict[str, str] = {
    "ade20k-150": "published",
    "pascal-5i": "squash",
    "coco-20i": "squash",
    "fss-1000": "squash",
}
"""Of the protocols whose pictures are not seen as a whole."""


@dataclass(frozen=True, kw_only=True)
class OtherPolicy:
    """What becomes of pixels that are none of the classes asked for."""

    policy: Literal["none", "prompts", "threshold"] = "none"
    """`none`: the best class wins everywhere. `prompts`: the texts below compete, and whatever they
    win is none of the classes. `threshold`: so is a pixel whose best class is less probable than
    `threshold`. A protocol's background class, where it has one, takes these pixels."""
    prompts: tuple[str, ...] = ("other",)
    """Texts for "none of these"."""
    threshold: float = 0.2
    """Probability, over all texts asked."""

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
    """How the network sees a picture.

    `whole`: resized to a long side of `base_px`, one forward pass. `single`: windows of `window_px`
    on the picture at `base_px`. `published`: LSeg's six scales of `base_px`, each mirrored too, in
    windows; logits summed. `squash`: resized to a square of `window_px` whatever its shape, and
    scored at that size, as the few-shot protocols do.
    """

    mode: Mode = "whole"
    """How the network sees an image: as a whole, in windows, as published, or squashed."""
    base_px: int = 520
    """Long side at scale 1; 0 with `whole` keeps the picture's size."""
    window_px: int = 480
    """Side of a window, or of the square of `squash`."""

    def __post_init__(self) -> None:
        if self.base_px < 16 and not (self.base_px == 0 and self.mode == "whole"):
            raise UserError(
                f"geometry.base_px={self.base_px}: must be at least 16, or 0 with mode whole"
            )
        if self.window_px < 16:
            raise UserError(f"geometry.window_px={self.window_px}: must be at least 16")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The processes that evaluate. The figures do not depend on their number."""

    num_workers: int = 0
    """0 takes one for each GPU of the cluster, or for each CPU where there are none."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that each worker holds."""
    threads: int = 1
    """Threads of a worker's CPU kernels. Another number may round sums otherwise."""
    use_gpu: bool | None = None
    """One GPU for each worker; null: where the cluster has any."""
    max_failures: int = 3
    """Times that each worker process may die before the evaluation ends."""
    chunk_images: int = 8
    """Pictures between two savings of a worker's counts."""
    batch_images: int = 4
    """Pictures of one size that go through the network together."""

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
    """A checkpoint's folder, `s3://...`, or `models:/name@alias` of an MLflow registry."""
    protocol: ProtocolName = "unified"
    """What is measured, and how."""
    out: str = "runs/evaluation"
    """Folder for reports and partial results: a directory or `s3://`."""
    shards: str = ""
    """Folder of prepared shards: a directory or `s3://`."""
    roots: dict[str, str] = field(default_factory=dict)
    """Official downloads by dataset, instead of shards or beside them."""
    datasets: tuple[str, ...] = ()
    """Only these of the datasets; empty takes all that there are."""
    split: str = "val"
    """Split to evaluate on."""
    folds: tuple[int, ...] = (0, 1, 2, 3)
    """Folds of PASCAL-5i and COCO-20i."""
    splits: str = ""
    """Folder with HSNet's split lists (`pascal/val/fold0.txt`, `coco/val/fold0.pkl`)."""
    labels: Literal["all", "checkpoint", "unseen"] = "all"
    """Unified classes to ask for: the whole taxonomy; those that the checkpoint was trained on,
    where pixels of others do not count; or, zero-shot, those that it was not trained on and the
    pictures show, where pixels of others should get "other"."""
    max_images: int = 0
    """Pictures of each dataset, spread evenly over it; 0 takes all."""
    seed: int = 0
    """Of the draws of COCO-20i (published: 0) and of the behaviours."""
    other: OtherPolicy | None = None
    """What becomes of pixels of none of the classes; null: what the protocol prescribes."""
    geometry: Geometry | None = None
    """How the network sees pictures; null: what the protocol prescribes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass."""
    max_bad_share: float = 0.001
    """The evaluation ends when more than this share of the pictures does not decode."""
    examples: int = 6
    """Best and worst pictures of each dataset on the report's page, of each kind."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("checkpoint='': must name a checkpoint: a folder, s3://, models:/")
        for name in ("max_images", "seed", "examples"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share={self.max_bad_share}: must lie between 0 and 1")
        if not self.folds or not set(self.folds) <= {0, 1, 2, 3}:
            raise UserError(f"folds={list(self.folds)}: must be some of 0, 1, 2, 3")
        if len(set(self.folds)) < len(self.folds):
            raise UserError(f"folds={list(self.folds)}: each must be there once")

    @property
    def variant(self) -> str:
        """The protocol, and what departs from its own settings: names folders and metrics.

        So figures under another policy for "other" never take the place of the protocol's.
        """
        words: list[str] = [self.protocol]
        if self.labels != "all":
            words.append(self.labels)
        if self.geometry is not None and self.geometry.mode != DEFAULT_MODES.get(
            self.protocol, "whole"
        ):
            words.append(self.geometry.mode)
        if self.other is not None:
            words.append(f"other-{self.other.policy}")
        if self.split != "val":
            words.append(self.split)
        if self.precision != "fp32":
            words.append(self.precision)
        if self.max_images:
            words.append(f"max{self.max_images}")
        # What is changed besides has no short name.
        rest = {
            "datasets": self.datasets,
            "folds": self.folds if self.folds != (0, 1, 2, 3) else (),
            "seed": self.seed,
            "other": self.other if self.other != self._plain_other() else None,
            "geometry": self.geometry if self.geometry != self._plain_geometry() else None,
        }
        if any(rest.values()):
            words.append(hashlib.sha256(repr(rest).encode()).hexdigest()[:6])
        return "-".join(words)

    def _plain_other(self) -> OtherPolicy | None:
        return OtherPolicy(policy=self.other.policy) if self.other else None

    def _plain_geometry(self) -> Geometry | None:
        return Geometry(mode=self.geometry.mode) if self.geometry else None
