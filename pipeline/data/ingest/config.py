"""The configuration of a training run's data: shards, shares of the datasets, crops, loaders."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.mixture import resolve_weights
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data: shards, shares of the datasets, crops and loaders."""

    shards: str = ""
    """Folder of prepared shards: a local directory or `s3://bucket/prefix`."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to validate on."""
    weights: dict[str, float] | str = "equal"
    """Share of each dataset: `equal`, `size`, or a number by dataset name."""
    temperature: float = 1.0
    """With `weights: size`: a share is proportional to size ** temperature; 0 is equal."""
    caps: dict[str, int] = field(default_factory=dict)
    """Most samples used of a dataset, by name: a random subset, the same in every pass."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How crops are cut from the images."""
    num_loaders: int | Literal["auto"] = "auto"
    """Loader actors on each node that has training workers. `auto`: as many as keep the node's
    logical CPUs busy that the workers do not hold."""
    loader_cpus: float = 0.5
    """Logical CPUs that each loader actor holds; with `num_loaders: auto`, those of a node all
    together. Never more than the workers leave."""
    loader_threads: int = 2
    """Threads that decode in each loader actor."""
    max_bad_share: float = 0.001
    """The run stops when more than this share of the samples read cannot be decoded."""
    cache_gib: float = 32.0
    """Room on each node for copies of shards in S3, in GiB; 0 reads each sample from S3 each time.
    Local shards are read in place."""
    cache_dir: str = ""
    """Folder of the copies; by default `$LSEG_CACHE_DIR`, or one in the folder for temporary
    files."""

    def __post_init__(self) -> None:
        if self.num_loaders != "auto" and self.num_loaders < 1:
            raise UserError(f"data.num_loaders={self.num_loaders}: must be at least 1, or auto")
        if self.loader_threads < 1:
            raise UserError(f"data.loader_threads={self.loader_threads}: must be at least 1")
        if not 0 < self.loader_cpus < math.inf:
            raise UserError(f"data.loader_cpus={self.loader_cpus}: must be above 0")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(
                f"data.max_bad_share={self.max_bad_share}: must lie between 0 (stop at the first "
                "bad sample) and 1 (never stop)"
            )
        if not 0 <= self.cache_gib < math.inf:
            raise UserError(
                f"data.cache_gib={self.cache_gib}: must be 0 or more GiB; 0 turns the cache off"
            )
        if self.cache_dir and not self.cache_gib:
            raise UserError(
                f"data.cache_dir={self.cache_dir}: would be ignored, since data.cache_gib is 0: "
                "leave one of the two out"
            )
        resolve_weights({}, self.weights, self.temperature)
        for name, cap in self.caps.items():
            if cap < 1:
                raise UserError(
                    f"data.caps.{name}={cap}: must be at least 1; to leave a dataset out, set "
                    f"data.weights.{name} to 0"
                )
