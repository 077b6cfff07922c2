"""A training checkpoint: the model's files, and what continuing its training takes.

`trainer.pt` holds optimizer, schedule and step, and is loaded with `weights_only=True`; `order.txt`
holds a digest of the samples of each step (see `pipeline.training.state.order`); the other files
are those of every checkpoint folder (see `pipeline.checkpoints.files`).

With a moving average, model.safetensors holds the average, which is what was validated, and
trainer.pt the weights that training continues from. The position in the data stream needs no file
of its own: step s has used s x batch_size rows.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint_files import CONFIG, TEXT_WEIGHTS, WEIGHTS
from model.config import ModelConfig
from model.lightning_file import check_torch_file
from pipeline.checkpoints.files import ORDER, TRAINER
from pipeline.checkpoints.provenance import Provenance, save_model
from pipeline.ray_internals import set_current_rates
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.saving.host_copy import HostCopy
from pipeline.training.state import order
from pipeline.training.state.state import TrainingState

TOWER = "text_tower.clip."
"""Beginning of the names of a trained text tower's weights in the network's."""


def provenance_of(
    config: TrainMixConfig, labels: LabelSpace, metrics: dict[str, Any], tags: dict[str, str]
) -> Provenance:
    """Collects what a checkpoint of a run says of itself.

    The metrics are those of the report that comes with it; the tags identify code and data.
    """
    return Provenance(labels.names, plain(config), tags, texts=labels.texts, metrics=metrics)


@dataclass(frozen=True)
class Content:
    """What a checkpoint stores of a state, in host memory: later steps do not change it."""

    step: int
    config: ModelConfig
    """Settings of the network."""
    weights: dict[str, Tensor]
    """Weights of the network that is handed out."""
    trainer: dict[str, Any] | None
    """What continuing the training takes; None where only the model is stored."""
    order: list[int]
    copy: HostCopy
    """Whose memory the tensors are in."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the network that is handed out, without those of its text tower."""
        return {k: v for k, v in self.weights.items() if not k.startswith(TOWER)}

    @property
    def text_weights(self) -> dict[str, Tensor]:
        """The weights of a text tower that was trained along, under its own names."""
        return {k.removeprefix(TOWER): v for k, v in self.weights.items() if k.startswith(TOWER)}


def content_of(
    state: TrainingState,
    copy: HostCopy | None = None,
    before: Content | None = None,
    resumable: bool = True,
) -> Content:
    """Copies what a checkpoint stores.

    Args:
        state: The state, which may change from then on.
        copy: Memory to copy into; new memory if None.
        before: What was copied into it last; weights of the same step are not copied again.
        resumable: Whether training shall be able to continue from it.
    """
    copy = copy or HostCopy()
    if before is not None and before.step == state.step:
        weights = before.weights
    else:
        weights = copy.take(state.evaluated.state_dict(), "weights")
    trainer: dict[str, Any] | None = None
    if resumable:
        trainer = {
            "step": state.step,
            "optimizer": state.optimizer.state_dict(),
            "schedule": state.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "owes_validation": state.owes_validation,
        }
        # The rule of the schedule is a function of the configuration, not state.
        trainer["schedule"].pop("lr_lambdas", None)
        if state.average is not None:
            trainer["weights"] = state.lseg.state_dict()
            trainer["num_averaged"] = state.average.n_averaged
        trainer = copy.take(trainer, "trainer")
    config = state.lseg.config
    if state.lseg.text_tower is not None:
        # The tower is a file of the checkpoint, which everyone reads it from.
        config = replace(config, text=replace(config.text, pretrained=TEXT_WEIGHTS))
    return Content(state.step, config, weights, trainer, list(state.order), copy)


def save(folder: Path, content: Content, provenance: Provenance) -> None:
    """Writes a checkpoint into an existing folder; on any thread."""
    content.copy.wait()
    save_model(folder, content, provenance)
    if text := content.text_weights:
        save_file(text, folder / TEXT_WEIGHTS)
        shutil.copymode(folder / CONFIG, folder / TEXT_WEIGHTS)
    if content.trainer is None:
        return
    trainer = dict(content.trainer)
    if "num_averaged" in trainer:
        trainer["num_averaged"] = int(trainer["num_averaged"])
    torch.save(trainer, folder / TRAINER)
    order.write(folder / ORDER, content.order)


def restore(source: ray.train.Checkpoint, state: TrainingState, device: torch.device) -> None:
    """Loads a checkpoint into a freshly built state."""
    with source.as_directory() as name:
        folder = Path(name)
        weights = load_file(folder / WEIGHTS, device=str(device))
        if state.lseg.text_tower is not None:
            text = load_file(folder / TEXT_WEIGHTS, device=str(device))
            weights |= {f"{TOWER}{name}": value for name, value in text.items()}
        check_torch_file(folder / TRAINER)
        trainer = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
        state.order = order.read(folder / ORDER)
    state.evaluated.load_state_dict(weights)
    state.lseg.load_state_dict(trainer.get("weights", weights))
    if state.average is not None:
        state.average.n_averaged.fill_(trainer.get("num_averaged", 0))
    # Rates and decays come from the configuration, which may have changed, not the checkpoint.
    optimizer, schedule = state.optimizer, state.schedule
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(trainer["optimizer"])
    saved, rates = trainer["schedule"], schedule.base_lrs
    lambdas = [None] * len(rates)
    schedule.load_state_dict({**saved, "base_lrs": rates, "lr_lambdas": lambdas})
    now = [
        lr * rule(saved["last_epoch"]) for lr, rule in zip(rates, schedule.lr_lambdas, strict=True)
    ]
    for group, values, lr in zip(optimizer.param_groups, settings, now, strict=True):
        group.update({**values, "lr": lr})
    set_current_rates(schedule, now)
    torch.set_rng_state(trainer["torch_rng"])
    state.step = int(trainer["step"])
    state.owes_validation = bool(trainer.get("owes_validation", False))
    assert len(state.order) == state.step
