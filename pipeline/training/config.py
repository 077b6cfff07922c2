"""The typed configuration of a training run; see jobs/recipes for examples.

Units are in the names: `_px` pixels, `_s` seconds. Counts of steps are optimiser steps.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from model.config import LossKind, ModelConfig, reads_pretrained
from pipeline.data.ingest.config import DataConfig
from pipeline.errors import UserError
from pipeline.tracking.config import TrackingConfig

_BEFORE_TIMEOUT = 0.8
"""Share of `cluster.collective_timeout_s` after which a worker without a step ends, at most."""


def _require(group: str, given: Any, names: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Refuses the first of some settings of a group that breaks a rule."""
    for name in names.split():
        if not holds(value := getattr(given, name)):
            raise UserError(f"{group}.{name}={value}: must {rule}")


def read_rate(text: str) -> tuple[str, float]:
    """The pattern and the factor of one of `train.rates`.

    Raises:
        UserError: It is not PATTERN=FACTOR.
    """
    pattern, _, factor = text.rpartition("=")
    try:
        re.compile(pattern)
        if pattern and 0 <= float(factor) < math.inf:
            return pattern, float(factor)
    except (re.error, ValueError):
        pass
    raise UserError(
        f"train.rates={text!r}: must be a regular expression and a factor of 0 or more, as "
        "PATTERN=FACTOR: write for example '^backbone=0.01'"
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the run is called and where it keeps its state."""

    name: str = "lseg"
    """Name of the run. The same name with the same storage resumes."""
    storage: str = "runs"
    """Folder for checkpoints: a directory that all nodes share, or `s3://bucket/prefix`."""
    seed: int = 0
    """Seed of everything random: weights, order of samples, augmentation."""
    start_from: str = ""
    """Checkpoint whose weights the run starts from, with a new optimiser and schedule: a folder,
    `s3://...` or `models:/name@alias`, of MLFLOW_TRACKING_URI. Empty: as
    `model.backbone.pretrained` says."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}", self.name):
            raise UserError(
                f"run.name={self.name[:100]!r}: must be at most 200 letters, digits, '.', '_' "
                "and '-' and begin with a letter or digit, since it names a folder"
            )
        _require("run", self, "seed", lambda v: v >= 0, "be >= 0")


@dataclass(frozen=True, kw_only=True)
class OtherConfig:
    """Teaches the word for "none of these": some batches are asked for fewer labels.

    In such a batch each label is dropped with a probability, and the pixels of dropped labels
    become pixels of the word. The published model has no such step.
    """

    share: float = 0.0
    """Share of the batches; 0 trains as published."""
    drop: float = 0.5
    """Probability that a label is dropped from such a batch."""
    words: tuple[str, ...] = ("other", "others", "background", "something")
    """The word is drawn from these."""

    def __post_init__(self) -> None:
        _require("train.other", self, "share drop", lambda v: 0 <= v <= 1, "lie between 0 and 1")
        if self.share and not self.words:
            raise UserError("train.other.words=[]: give at least one word, or set share to 0")


@dataclass(frozen=True, kw_only=True)
class DistractorConfig:
    """Asks for labels that no training image shows, so that absent ones are not hallucinated.

    They are classes of the taxonomy or words, drawn anew for each step; no pixel is theirs. The
    published model has no such step.
    """

    count: int = 0
    """Distractors in each step; 0 trains as published."""
    never: tuple[str, ...] = ()
    """Classes of the taxonomy that are never asked: those of a later zero-shot evaluation."""
    words: tuple[str, ...] = ()
    """Words to draw the distractors from, in place of the taxonomy's classes."""

    def __post_init__(self) -> None:
        _require("train.distractors", self, "count", lambda v: v >= 0, "be 0 or more")
        if self.words and self.never:
            raise UserError(
                "train.distractors.never: has no effect with train.distractors.words, which name "
                "all that is asked: leave one of them out"
            )


DEFAULT_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation; defaults as published for ADE20K where they apply."""

    steps: int = 0
    """Optimiser steps of the whole run. Give exactly one of `steps`, `images` and `passes`; with
    none, 100 000 steps."""
    images: int = 0
    """Training images of the whole run, instead of `steps`; rounded up to whole steps."""
    passes: float = 0.0
    """Passes over the data, instead of `steps`: one is as many images as the datasets have samples
    in use (see `data.caps`)."""
    batch_size: int = 32
    """Samples of one optimiser step over all workers."""
    accumulate: int = 1
    """Forward and backward passes per step and worker, to save memory. The gradients are summed
    exactly, but batch norm takes its statistics over one pass of all workers, batch_size /
    accumulate images, so that a network with batch norm trains a little differently."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` as published; `adamw` for backbones that are trained from scratch."""
    lr: float = 0.004
    """Learning rate of the backbone; with `sgd` the decoder's is ten times as high."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    weight_decay: float = 1e-4
    """L2 penalty on every trained weight (decoupled with `adamw`)."""
    decay_norms: bool = True
    """Whether the weights of normalisation layers have the penalty too; false as CAT-Seg does."""
    backbone: Literal["all", "attention-qv", "none"] = "all"
    """What of the backbone trains: all, or the weights of queries and values in its attention
    alone, as CAT-Seg does with CLIP, or nothing."""
    text: Literal["frozen", "attention-qv"] = "frozen"
    """What of the text encoder trains: nothing, or the weights of queries and values in its
    attention, as CAT-Seg does with CLIP's; for encoders of open_clip. The labels of each step are
    then encoded in it, with gradients: `labels_per_step` bounds what that takes. A checkpoint holds
    the tower, and which labels are near to others (see `labels_per_step`) is asked of the frozen
    one."""
    rates: tuple[str, ...] = ()
    """Factors on `lr` for the weights whose name a pattern (a regular expression) is found in, each
    as PATTERN=FACTOR, such as `^backbone=0.01`; the first that is found counts, and 0 leaves the
    weight as it is. Without one: as published, which with `adamw` is 1."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls to 0: as (1 - step / steps) ** poly_power, or along a cosine."""
    poly_power: float = 0.9
    """Exponent of the schedule `poly`."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm; 0 turns clipping off, as published."""
    labels: Literal["present", "all"] = "present"
    """Labels to train against: the classes that occur in the training shards, or all."""
    loss: Literal["auto", "softmax", "binary", "binary-all"] = "auto"
    """`softmax`: labels compete for each labelled pixel; `binary`: each label is right or wrong for
    it, whatever the others are; `binary-all`: so too, and unlabelled pixels count as wrong for
    every label, as CAT-Seg is published. `auto`: `binary` with the cost head, `softmax` without."""
    balance: float = 0.0
    """How much more the pixels of rare classes count: by the class's share of its dataset's pixels
    (at least a thousandth) to the power of minus this, with a mean of 1 over the dataset; 0 as
    published. At 0.5 a pixel of a class of 1 % counts seven times one of a class of 50 %."""
    held_out: tuple[str, ...] = ()
    """Classes that are not trained, by their names: their pixels count as unlabelled, and no step
    asks them. For zero-shot figures; see `labels` of `jobs/evaluate.py`."""
    label_sets: Literal["union", "own"] = "union"
    """Labels that compete in an image: those of the run, or only those that its dataset shows."""
    labels_per_step: int = 0
    """Most labels that compete in one step, which bounds the memory of the cost head: those that
    its pixels show, then by turns the nearest to these for the text encoder and drawn ones. 0:
    all."""
    text_noise: float = 0.0
    """Mean length of a random vector that is added to the unit vector of each label in every step,
    along the differences between the words of the run: it trains the neighbourhood of a word with
    it, for synonyms that no training asks. 0 as published."""
    test_fold: int | None = None
    """On the pairs of a few-shot benchmark: the fold whose classes are not trained, 0 to 3."""
    other: OtherConfig = field(default_factory=OtherConfig)
    """How the word "other" is taught: some batches are asked for fewer labels."""
    distractors: DistractorConfig = field(default_factory=DistractorConfig)
    """Extra negative labels: classes that no training image contains."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Precision of forward and backward; `auto` is bf16 on GPUs and fp32 on CPUs. `fp64` is for
    comparing runs, weights included (checkpoints are twice as large): rounding depends on the
    number of workers, and training amplifies it."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers in which workers exchange gradients; `bf16` halves the bytes, which pays where the
    network between nodes is slow, and rounds each gradient to 8 bits of mantissa."""
    compile: bool = False
    """Compile forward and backward of the network with torch.compile: faster on GPUs, after some
    minutes at the start. Ray workers need a C++ compiler for it."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Keep images and convolutions in channels-last order; `auto` does so on GPUs, where their
    bf16 kernels want it."""
    sync_batchnorm: bool = True
    """Share batch-norm statistics over the workers; without it a run depends on their number."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights (0.9999, say), which is then what is
    validated and handed out; 0 keeps none, as published."""
    deterministic: bool = False
    """Use only kernels that give the same bits each time, on the same hardware; slower on GPUs."""
    max_nonfinite_steps: int = 10
    """Steps with a loss or gradient that is not finite are skipped, up to this many in a row; one
    more ends the run with a diagnosis."""
    log_every: int = 20
    """Steps between two lines of log and two points in MLflow."""
    system_metrics_s: float = 10.0
    """Seconds between two samples of the load of worker 0's node (CPU, memory, disk, network, GPUs)
    in MLflow; 0 for none."""
    validate_every: int = 1000
    """Steps between two validations; 0 validates only at the end."""
    val_images: int = 200
    """Images of each dataset to validate on; 0 takes all."""
    val_datasets: tuple[str, ...] | Literal["trained", "all"] = "trained"
    """Datasets to validate on: those that are trained, all that the shards have, or some by name.
    `val/miou` is the mean over those that show any of the labels."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, the newest ones."""
    keep_best: str = "val/miou"
    """Metric of the validation by which the best model is kept besides; empty for none."""
    storage_patience_s: float = 1800.0
    """How long a checkpoint that the run's storage does not take is tried again, while training
    continues; then the workers start anew from the last stored one."""

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "images", "passes") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(
                f"train.{given[0]}={getattr(self, given[0])}: train.{given[1]}="
                f"{getattr(self, given[1])} also says how long the run is: give exactly one of "
                "train.steps, train.images and train.passes, and set the others to 0"
            )
        length, shares = "steps images passes", "momentum ema_decay"
        positive = (
            "batch_size accumulate log_every checkpoint_every keep_checkpoints "
            "max_nonfinite_steps lr"
        )
        not_negative = (
            "weight_decay warmup_steps clip_norm validate_every val_images storage_patience_s "
            "labels_per_step"
        )
        _require("train", self, length, lambda v: 0 <= v < math.inf, "be above 0")
        _require("train", self, positive, lambda v: 0 < v < math.inf, "be above 0, and finite")
        _require("train", self, not_negative, lambda v: v >= 0, "be 0 or more")
        _require("train", self, "text_noise", lambda v: 0 <= v <= 10, "lie between 0 and 10")
        _require("train", self, "balance", lambda v: 0 <= v <= 1, "lie between 0 and 1")
        _require("train", self, "labels_per_step", lambda v: v != 1, "be 0, or 2 or more")
        _require("train", self, shares, lambda v: 0 <= v < 1, "be at least 0 and below 1")
        for rate in self.rates:
            read_rate(rate)
        if not (self.system_metrics_s == 0 or 1 <= self.system_metrics_s < math.inf):
            raise UserError(
                f"train.system_metrics_s={self.system_metrics_s:g}: must be 1 or more seconds, or "
                "0 for no system metrics: the default is 10"
            )
        if self.keep_best and not re.fullmatch(r"val/(\w+/)?(miou|pixel_accuracy)", self.keep_best):
            raise UserError(
                f"train.keep_best={self.keep_best!r}: must be a metric of the validation: write "
                "val/miou, val/pixel_accuracy or val/DATASET/miou, or '' to keep none"
            )
        if self.steps and self.warmup_steps >= self.steps:
            raise UserError(
                f"train.warmup_steps={self.warmup_steps}: must be below train.steps={self.steps}: "
                "set it lower, or train for more steps"
            )


def in_steps(train: TrainConfig, rows_per_epoch: int) -> TrainConfig:
    """Expresses the length of the run in steps alone; all other settings stay.

    Args:
        train: Settings with any one of `steps`, `images` and `passes`.
        rows_per_epoch: Images of one pass over the data; 0 if that is not known, which leaves
            `passes` as they are.
    """
    images = train.images or math.ceil(train.passes * rows_per_epoch)
    if not images:
        return replace(train, steps=train.steps or (0 if train.passes else DEFAULT_STEPS))
    steps = -(-images // train.batch_size)
    return replace(train, steps=steps, images=0, passes=0.0)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The workers of the run."""

    num_workers: int = 1
    """Training workers; with GPUs, one GPU each."""
    min_workers: int = 0
    """Fewest workers to continue with when nodes are lost, at the same batch_size: each then takes
    more images of it, and needs more memory. 0: always `num_workers`. Ray counts the workers of
    other jobs and not what else they hold: beside those it may try for more than there are, once
    a minute, until nodes or jobs make room."""
    resize_every_s: float = 60.0
    """With `min_workers`: seconds between two looks for nodes that have come (back). A resize
    starts all workers anew from the last checkpoint."""
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """Workers on as few nodes as possible, or on as many."""
    use_gpu: bool = False
    """Train on GPUs (NCCL) rather than CPUs (gloo)."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that each worker holds; less than 1 is allowed."""
    threads_per_worker: int = 0
    """Threads of a worker's CPU kernels; 0 shares the cores of the node among its workers."""
    max_failures: int = 3
    """Worker or node failures to recover from before the run ends; -1 for no limit. Announced
    losses of nodes (preemption) do not count."""
    collective_timeout_s: float = 300.0
    """A worker that waits so long for the others within one exchange (NCCL, gloo) fails, and all
    start anew from the last checkpoint."""
    stuck_s: float = 240.0
    """A worker that makes no step for so long (for half an hour before its first one) writes its
    stacks to the log and to the folder `stuck` of the run, and all start anew from the last
    checkpoint. 0 waits for ever. With several workers it is below `collective_timeout_s`, which
    would end them without their stacks."""
    preemption_every: int = 10
    """Steps between two looks whether a node is about to be taken away, which calls for a
    checkpoint; 0 never looks."""

    def __post_init__(self) -> None:
        _require("cluster", self, "num_workers", lambda v: v >= 1, "be at least 1")
        if not 0 <= self.min_workers <= self.num_workers:
            raise UserError(
                f"cluster.min_workers={self.min_workers}: must be between 0 and "
                f"cluster.num_workers={self.num_workers}"
            )
        positive = "resize_every_s cpus_per_worker collective_timeout_s"
        _require("cluster", self, positive, lambda v: 0 < v < math.inf, "be above 0, and finite")
        _require("cluster", self, "preemption_every", lambda v: v >= 0, "be >= 0")
        _require("cluster", self, "stuck_s", lambda v: 0 <= v < math.inf, "be >= 0, and finite")
        _require("cluster", self, "max_failures", lambda v: v >= -1, "be >= 0, or -1 for no limit")

    @property
    def watch_s(self) -> float:
        """Seconds without a step after which a worker writes its stacks and ends; 0: never.

        With several workers less than `collective_timeout_s`, after which those that wait for it
        fail, and Ray ends all of them.
        """
        if self.num_workers == 1:
            return self.stuck_s
        return min(self.stuck_s, _BEFORE_TIMEOUT * self.collective_timeout_s)


@dataclass(frozen=True, kw_only=True)
class TrainMixConfig:
    """One training run of LSeg on a mixture of datasets."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, storage and seed of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """The shards, their mixture, and how they are read."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimisation, validation and checkpoints."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The workers of the run."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """The MLflow server of the run."""

    def __post_init__(self) -> None:
        parts = self.cluster.num_workers * self.train.accumulate
        if self.train.batch_size % parts:
            raise UserError(
                f"train.batch_size={self.train.batch_size}: must be a multiple of "
                f"cluster.num_workers x train.accumulate = {parts}: change one of the three"
            )
        if self.train.gradient_dtype == "bf16" and self.cluster.num_workers == 1:
            raise UserError(
                "train.gradient_dtype=bf16: one worker exchanges no gradients: leave it out, or "
                "raise cluster.num_workers"
            )
        if self.train.text != "frozen":
            self._check_trained_text()
        if self.train.balance and self.loss != "softmax":
            raise UserError(
                f"train.balance={self.train.balance:g}: has no meaning with the loss {self.loss}, "
                "which judges each label alone: leave it out, or set train.loss=softmax"
            )

    def _check_trained_text(self) -> None:
        """Refuses what does not go with a text encoder that is trained."""
        train, encoder = self.train, self.model.text.encoder
        if not reads_pretrained(encoder):
            raise UserError(
                f"train.text={train.text}: model.text.encoder={encoder} cannot be trained: must be "
                "a CLIP model of open_clip's: name one, or set train.text=frozen"
            )
        if train.text_noise:
            raise UserError(
                f"train.text_noise={train.text_noise:g}: is for vectors that do not change: leave "
                "it out, or set train.text=frozen"
            )

    @property
    def loss(self) -> LossKind:
        """The loss that `train.loss` and the head mean."""
        if self.train.loss != "auto":
            return self.train.loss
        return "binary" if self.model.head.kind == "cost" else "softmax"

    @property
    def rows_per_pass(self) -> int:
        """Samples of one forward pass of one worker: a block of the stream.

        Where fewer than `cluster.num_workers` are left, some take several blocks in a pass.
        """
        return self.train.batch_size // (self.cluster.num_workers * self.train.accumulate)

    @property
    def logical_cpus(self) -> float:
        """Logical CPUs that the workers hold at once, and the loaders of one node."""
        workers = self.cluster.num_workers * self.cluster.cpus_per_worker
        loaders = 1 if self.data.num_loaders == "auto" else self.data.num_loaders
        return workers + loaders * self.data.loader_cpus

    @property
    def least_cpus(self) -> float:
        """Logical CPUs without which the run cannot begin; loaders take what the workers leave."""
        fewest = self.cluster.min_workers or self.cluster.num_workers
        return fewest * self.cluster.cpus_per_worker

    @property
    def fewest_gpus(self) -> int:
        """GPUs without which the run cannot begin: one for each worker that it must have."""
        fewest = self.cluster.min_workers or self.cluster.num_workers
        return fewest if self.cluster.use_gpu else 0


def plain(config: Any) -> dict[str, Any]:
    """A configuration as YAML and JSON know it: dicts, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(config), default=str))
