"""What a recipe would do, without doing it: one step on tensors that have a shape and no memory.

Builds the network and the optimiser as the recipe says, with no weights, no data and no Ray, and
makes a step of one worker's images. Memory, operations and time are estimates: activations
are what autograd keeps, and the speed is an assumption, which is printed with the result.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.lseg import LSeg
from model.text import tokens_of
from pipeline.data.pixels.encode import WELL_ABOVE
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import universal
from pipeline.progress import duration
from pipeline.ray_internals import fake_tensors
from pipeline.training.config import TrainMixConfig, in_steps
from pipeline.training.driver.preflight import check_training
from pipeline.training.plan import RunPlan
from pipeline.training.state.optimizer import build_optimizer

GPU_TFLOPS, CPU_TFLOPS = 100.0, 0.05
"""Sustained by one worker, assumed: about a fourth of an A100's or a tenth of an H100's bf16 peak,
and half of one CPU core's float32 peak."""

_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """What a recipe would take."""

    config: TrainMixConfig
    """With the length in steps, where that is known."""
    num_parameters: int
    """Parameters of the network."""
    num_trained: int
    """Parameters that have a gradient."""
    num_labels: int
    images_per_pass: int | None
    """Samples of the mixture's datasets in the training split; None without shards."""
    memory_gib: float
    """Memory of one worker: weights, gradients, optimiser, average, activations."""
    tflop_per_image: float
    """10^12 floating-point operations of forward and backward."""
    seconds_per_image: float
    """At the assumed speed, of all workers together."""
    finer: tuple[str, ...] = ()
    """Datasets whose shards are far finer than the recipe can use."""

    @property
    def checkpoint_gb(self) -> float:
        """10^9 bytes of a checkpoint: weights, moments, and the weights beside an average."""
        train = self.config.train
        moments = {"sgd": 1, "adamw": 2}[train.optimizer]
        numbers = (1 + bool(train.ema_decay)) * self.num_parameters + moments * self.num_trained
        return (8 if train.precision == "fp64" else 4) * numbers / 1e9

    def lines(self) -> list[str]:
        """The report, for people."""
        config = self.config
        speed = GPU_TFLOPS if config.cluster.use_gpu else CPU_TFLOPS
        images = config.train.steps * config.train.batch_size
        device = "GPU" if config.cluster.use_gpu else "CPU"
        whole = "" if images else "for each 10 000 images "
        return [
            *self.facts(),
            f"ETA             {duration(self.seconds_per_image * (images or 10_000))} {whole}on "
            f"{config.cluster.num_workers} {device} worker(s), if each sustains {speed:g} TFLOP/s "
            "and never waits for data",
        ]

    def facts(self) -> list[str]:
        """The part of the report that no machine changes."""
        config = self.config
        train, rows = config.train, self.images_per_pass
        images = train.steps * train.batch_size
        if rows:
            passes = f"{images / rows:.1f} passes over the data"
        else:
            passes = (
                f"{train.passes:g} passes over the data" if train.passes else "passes not known"
            )
        return [
            f"parameters      {self.num_parameters / 1e6:.1f} M, {self.num_labels} labels",
            f"memory          about {self.memory_gib:.1f} GiB a worker, at "
            f"{config.rows_per_pass} images a forward pass",
            f"images a pass   {rows if rows else 'not known: no shards at data.shards'}",
            f"run             {f'{train.steps} steps' if images else 'steps not known'} of "
            f"{train.batch_size} images: {f'{images} images, ' if images else ''}{passes}",
            f"operations      {self.tflop_per_image:.3g} TFLOP an image",
            f"checkpoint      {self.checkpoint_gb:.2g} GB, in the host memory of worker 0 too",
            *self._about_shards(),
        ]

    def _about_shards(self) -> list[str]:
        if not self.finer:
            return []
        used_px = used_long_side(self.config)
        return [
            f"WARNING         {', '.join(self.finer)}: most images are far finer than {used_px} "
            "px, the most that this recipe uses: they load about twice as fast from shards that "
            f"jobs/prepare_shards.py makes with --train_long_side {used_px}"
        ]


def used_long_side(config: TrainMixConfig) -> int:
    """Pixels of the long side of an image at the largest scale of the augmentation."""
    augment = config.data.augment
    if augment.squash:
        return augment.crop_px
    return math.ceil(augment.base_px * augment.scale[1])


def finer_than_used(config: TrainMixConfig, manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Datasets of which more than half of the images are well above `used_long_side`."""
    limit_px = WELL_ABOVE * used_long_side(config)
    found = []
    for name, manifest in manifests.items():
        sides = [max(s.height, s.width) for shard in manifest.shards for s in shard.samples]
        if sides and sum(side >= limit_px for side in sides) > len(sides) / 2:
            found.append(name)
    return tuple(found)


def dry_run(config: TrainMixConfig, plan: RunPlan | None) -> Estimate:
    """Builds everything and makes one step without memory.

    Args:
        config: The run.
        plan: Its plan; None where no shards are there to plan with.

    Raises:
        ModelError: The network cannot be built so.
    """
    num_labels, images, finer = len(universal().classes), None, tuple[str, ...]()
    if plan is None:
        config = replace(config, train=in_steps(config.train, 0))
    else:
        config, num_labels, images = plan.config, len(plan.labels), plan.mixture.rows_per_epoch
        finer = finer_than_used(config, plan.corpus.manifests)
        if plan.is_few_shot:  # A step asks for the classes of its own images alone.
            num_labels = min(num_labels, config.train.batch_size + 1)
    lseg = check_training(config).train()
    tokens: tuple[int, ...] = ()
    if lseg.text_tower is not None:
        label = plan.labels.texts[0] if plan else "label"
        tokens = tuple(tokens_of(config.model.text, [label]).shape[1:])
    # Not on the meta device itself, for which there is no autocast.
    with fake_tensors():
        lseg.to_empty(device="cpu")
        optimizer = build_optimizer(lseg, config.train)
        with _kept_bytes() as kept:
            of_images, of_text = _step(lseg, config, num_labels, tokens, kept)
        torch.nn.utils.clip_grad_norm_(lseg.parameters(), config.train.clip_norm or float("inf"))
        optimizer.step()

    num_parameters = sum(p.numel() for p in lseg.parameters())
    num_trained = sum(p.numel() for p in lseg.parameters() if p.requires_grad)
    values = [value for state in optimizer.state.values() for value in state.values()]
    moments = sum(value.numel() for value in values if isinstance(value, torch.Tensor))
    copies = 1 + bool(config.train.ema_decay)
    bf16 = config.train.precision == "bf16" or (
        config.train.precision == "auto" and config.cluster.use_gpu
    )
    activations = sum(kept) * (0.5 if bf16 else 1.0)
    memory = 4 * (copies * num_parameters + num_trained + moments) + activations
    if config.train.precision == "fp64":
        memory *= 2  # Weights and moments too. The estimate of the time is that of fp32.
    # The text of a step serves all its passes.
    per_image = of_images / config.rows_per_pass
    per_image += of_text / (config.rows_per_pass * config.train.accumulate)
    speed = (GPU_TFLOPS if config.cluster.use_gpu else CPU_TFLOPS) * 1e12
    seconds = per_image / (speed * config.cluster.num_workers)
    sizes = memory / _GIB, per_image / 1e12, seconds
    numbers = num_parameters, num_trained
    return Estimate(config, *numbers, num_labels, images, *sizes, finer)


def _step(
    lseg: LSeg, config: TrainMixConfig, num_labels: int, tokens: tuple[int, ...], kept: list[int]
) -> tuple[float, float]:
    """Forward and backward of one worker's images, of a recipe's number of labels.

    `tokens` is the shape of a label's, where the text tower is trained.

    Returns:
        Operations of a pass of the images, and of a step's text.
    """
    side, rows = config.data.augment.crop_px, config.rows_per_pass
    extra = config.train.distractors.count + bool(config.train.other.share)
    image = torch.empty(rows, side, side, 3, dtype=torch.uint8)
    asked = num_labels + extra
    asked = min(asked, config.train.labels_per_step or asked)
    text = torch.empty(asked, lseg.text_width)
    with FlopCounterMode(display=False) as of_text:
        if lseg.text_tower is not None:
            made = lseg.text_tower(torch.zeros(asked, *tokens, dtype=torch.int64))
            if made.requires_grad:
                made.backward(torch.empty_like(made))
            text = made.detach().requires_grad_()
    with FlopCounterMode(display=False) as of_images:
        logits = lseg(lseg.normalize(image), text)
        # The loss keeps its gradient of this size, and a chunk of rows at full size that is small.
        kept.append(2 * logits.numel() * logits.element_size())
        logits.backward(torch.empty_like(logits))
    return of_images.get_total_flops(), of_text.get_total_flops()


@contextmanager
def _kept_bytes() -> Iterator[list[int]]:
    """Collects the bytes of the tensors that autograd keeps for the backward pass."""
    sizes: list[int] = []
    seen: set[int] = set()
    alive: list[torch.Tensor] = []  # A freed tensor's id may come again.

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in seen and not isinstance(tensor, torch.nn.Parameter):
            seen.add(id(tensor))
            alive.append(tensor)
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
