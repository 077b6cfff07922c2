"""A training checkpoint: the model's files, and what continuing its training takes.

`trainer.pt` holds optimizer, schedule and step, and is loaded with `weights_only=True`; `order.txt`
holds a digest of the samples of each step (see `pipeline.training.state.order`); the other files
are those of every checkpoint folder (see `pipeline.checkpoints.files`).

With a moving average, model.safetensors holds the average, which is what was validated, and
trainer.pt the weights that training continues from. The position in the data stream needs no file
of its own: step s has used s x batch_size rows.
"""

from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors.torch import load_file

from model.checkpoint import WEIGHTS
from pipeline.checkpoints.files import ORDER, TRAINER
from pipeline.checkpoints.provenance import Provenance, save_model
from pipeline.ray_internals import set_current_rates
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.state import order
from pipeline.training.state.state import TrainingState


def provenance_of(
    config: TrainMixConfig, labels: LabelSpace, metrics: dict[str, Any], tags: dict[str, str]
) -> Provenance:
    """Collects what a checkpoint of a run says of itself.

    The metrics are those of the report that comes with it; the tags identify code and data.
    """
    return Provenance(labels.names, plain(config), tags, texts=labels.texts, metrics=metrics)


def save(folder: Path, state: TrainingState, provenance: Provenance) -> None:
    """Writes a checkpoint of a state into an existing folder."""
    save_model(folder, state.evaluated, provenance)
    trainer: dict[str, Any] = {
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
        trainer["num_averaged"] = int(state.average.n_averaged)
    torch.save(trainer, folder / TRAINER)
    order.write(folder / ORDER, state.order)


def restore(source: ray.train.Checkpoint, state: TrainingState, device: torch.device) -> None:
    """Loads a checkpoint into a freshly built state."""
    with source.as_directory() as name:
        folder = Path(name)
        weights = load_file(folder / WEIGHTS, device=str(device))
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
