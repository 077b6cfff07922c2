"""The configuration of `jobs/retrain.py`: a training recipe, and the rule of promotion."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.errors import UserError
from pipeline.evaluation.config import Geometry, OtherPolicy, WorkersConfig
from pipeline.registry.config import RegistryConfig
from pipeline.registry.locks import LockConfig
from pipeline.training.config import TrainMixConfig


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """How champion and candidate are evaluated, both the same: protocol `unified`, all classes."""

    max_images: int = 0
    """Images of each dataset, spread evenly over it; 0 takes all."""
    geometry: Geometry = field(default_factory=Geometry)
    """How images are scaled and cut into windows for the networks."""
    other: OtherPolicy | None = None
    """What becomes of pixels of none of the classes; null: the best class wins everywhere."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass."""
    max_bad_share: float = 0.001
    """An evaluation ends when more than this share of the images does not decode."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """What `num_workers` 0 and `use_gpu` null leave open is as in `cluster`: what the cluster has
    at the moment may be nothing but a head."""

    @property
    def key(self) -> str:
        """16 hex digits that change with all but `workers`: figures compare under the same ones."""
        values = {name: value for name, value in asdict(self).items() if name != "workers"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __post_init__(self) -> None:
        if self.max_images < 0:
            raise UserError(f"comparison.max_images={self.max_images}: must be 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(
                f"comparison.max_bad_share={self.max_bad_share}: must lie between 0 and 1"
            )


_MAX_NAME_CHARS = 191
"""Longest name of a run here: an attempt adds nine characters."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(TrainMixConfig):
    """A re-training: the recipe of its training, and when its result replaces the champion.

    `run.name` is a prefix: each attempt has a name of its own, made from the fingerprints.
    """

    registry: RegistryConfig = field(default_factory=RegistryConfig)
    """The model in service is the version with the alias `champion`."""
    start: Literal["warm", "fresh"] = "warm"
    """From the champion's weights, with a new optimiser and schedule; or as the recipe says."""
    margin: float = 0.002
    """The mean mIoU (0 to 1) must rise by at least this; with 0, by anything."""
    max_drop: float = 0.01
    """The mIoU (0 to 1) of no dataset may fall by more than this."""
    force: bool = False
    """Trains although nothing changed, or although this data was tried already."""
    rollback: bool = False
    """Only puts the previous champion back; nothing is trained."""
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    """How champion and candidate are evaluated."""
    lock: LockConfig = field(default_factory=LockConfig)
    """The lock that keeps two re-trainings of one model apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("margin", "max_drop"):
            value = getattr(self, name)
            if not (0 <= value <= 1 and math.isfinite(value)):
                raise UserError(
                    f"{name}={value}: must lie between 0 and 1, the range of mIoU: a point of per "
                    "cent is 0.01"
                )
        if len(self.run.name) > _MAX_NAME_CHARS:
            raise UserError(
                f"run.name={self.run.name[:60]}...: must have at most {_MAX_NAME_CHARS} "
                "characters here, since each attempt adds some: give a shorter name"
            )
        if self.run.start_from:
            raise UserError(
                f"run.start_from={self.run.start_from}: has no meaning here: start=warm starts "
                "from the champion, start=fresh as the recipe says"
            )
        if self.train.test_fold is not None:
            raise UserError(
                f"train.test_fold={self.train.test_fold}: a few-shot fold has no validation "
                "shards to compare models on: use jobs/train_mix.py"
            )
        if self.rollback:
            for name in ("force", "start", "margin", "max_drop"):
                if getattr(self, name) != getattr(RetrainConfig, name):
                    raise UserError(
                        f"{name}={getattr(self, name)}: has no effect with rollback=true, which "
                        "trains and compares nothing: leave it out"
                    )
