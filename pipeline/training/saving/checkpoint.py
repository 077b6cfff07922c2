"""A training checkpoint: the model's files, and what it takes to go on.

    model.safetensors  config.yaml  labels.txt     readable by `model.checkpoint` alone
    trainer.pt         optimizer, schedule, step; loaded with `weights_only=True`
    order.txt          a digest of the samples of each step; see `pipeline.training.state.order`
    metrics.json  provenance.json

With a moving average, model.safetensors holds the average, which is what was validated, and
trainer.pt the weights that training goes on with. The position in the data stream needs no file of
its own: step s has used s x batch_size rows. Ray Train names the folders after the step and keeps
a snapshot of which are complete.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors.torch import load_file

from model.checkpoint import WEIGHTS, save_checkpoint
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.training.config import RunConfig, TrainMixConfig, plain
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.state import order
from pipeline.training.state.state import TrainingState

logger = logging.getLogger(__name__)

TRAINER = "trainer.pt"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_SPARE = "checkpoint_manager_snapshot.spare.json"


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def save(
    folder: Path,
    state: TrainingState,
    config: TrainMixConfig,
    labels: LabelSpace,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Writes a checkpoint of a state into an existing folder."""
    save_model(folder, state, config, labels, metrics, provenance)
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
    order.write(folder / order.FILE, state.order)


def save_model(
    folder: Path,
    state: TrainingState,
    config: TrainMixConfig,
    labels: LabelSpace,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Writes what it takes to use a model, but not to go on training it."""
    extra = {key: value for key, value in plain(config).items() if key != "model"}
    names, texts = labels.names, labels.texts
    save_checkpoint(folder, state.evaluated, names, extra_config=extra, texts=texts)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")


def restore(source: ray.train.Checkpoint, state: TrainingState, device: torch.device) -> None:
    """Loads a checkpoint into a freshly built state."""
    with source.as_directory() as name:
        folder = Path(name)
        weights = load_file(folder / WEIGHTS, device=str(device))
        trainer = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
        state.order = order.read(folder / order.FILE)
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
    schedule._last_lr = now
    torch.set_rng_state(trainer["torch_rng"])
    state.step = int(trainer["step"])
    state.owes_validation = bool(trainer.get("owes_validation", False))
    assert len(state.order) == state.step


def latest_step(run: RunConfig) -> int:
    """Steps done in the newest complete checkpoint of a run; 0 when there is none.

    Reads the snapshot that Ray Train itself resumes from.
    """
    storage = open_storage(run.storage)
    path = f"{run.name}/{_SNAPSHOT}"
    if not storage.exists(path):
        return 0
    latest = json.loads(storage.read(path)).get("latest_checkpoint_result")
    match = re.fullmatch(r"step_(\d+)", latest["checkpoint_dir_name"]) if latest else None
    return int(match.group(1)) if match else 0


def address_of(run: RunConfig, step: int) -> str:
    """The checkpoint of a run after `step` steps: a path or an s3:// address."""
    return f"{run.storage}/{run.name}/{name_of(step)}"


def metrics_of(run: RunConfig, step: int) -> dict[str, Any]:
    """The metrics that the checkpoint after `step` steps was reported with."""
    path = f"{run.name}/{name_of(step)}/{METRICS}"
    return json.loads(open_storage(run.storage).read(path))


class SnapshotKeeper(ray.train.UserCallback):
    """Keeps a second copy of Ray Train's snapshot, which Ray writes in place.

    A disk that is full while it does leaves an empty file, and with it a run that cannot resume
    though its checkpoints are whole. Ray deletes older checkpoints only after the snapshot was
    written, so the copy before it is still true.
    """

    def __init__(self, run: RunConfig) -> None:
        self._run = run

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Copies the snapshot that this report has changed."""
        if checkpoint is None:
            return
        try:
            storage = open_storage(self._run.storage)
            snapshot = storage.read(f"{self._run.name}/{_SNAPSHOT}")
            storage.write(f"{self._run.name}/{_SPARE}", snapshot)
        except Exception as error:  # It is a spare: the run does not depend on it.
            logger.warning("no second copy of the run's snapshot: %s", error)


def repair(run: RunConfig) -> None:
    """Replaces a torn snapshot of Ray Train by the copy of the one before.

    Raises:
        UserError: The snapshot names a checkpoint that is not there.
    """
    storage = open_storage(run.storage)
    path, spare = f"{run.name}/{_SNAPSHOT}", f"{run.name}/{_SPARE}"
    if not storage.exists(path):
        return
    try:
        snapshot = json.loads(storage.read(path))
    except ValueError:
        if not storage.exists(spare):
            logger.warning("%s is torn, and no checkpoint was complete: starting over", path)
            storage.delete(path)
            return
        logger.warning("%s is torn: taking the one of the checkpoint before", path)
        data = storage.read(spare)
        snapshot = json.loads(data)
        storage.write(path, data)
    for result in snapshot.get("checkpoint_results", []):
        folder = f"{run.name}/{result['checkpoint_dir_name']}"
        if not storage.exists(f"{folder}/{TRAINER}"):
            raise UserError(
                f"run.name={run.name}: its checkpoint {folder} in {run.storage} is gone or not "
                "whole, and Ray Train resumes only where all that it knows of are there: put it "
                "back, or give the run another name"
            )


def fetch(uri: str, into: Path) -> Path:
    """A checkpoint as a local folder: itself if it is one, else its files copied to `into`.

    Args:
        uri: A folder, or an `s3://` address.
        into: Where copies go; overwritten.
    """
    if "://" not in uri:
        return Path(uri)
    storage = open_storage(uri)
    into.mkdir(parents=True, exist_ok=True)
    for entry in storage.list():
        (into / Path(entry.path).name).write_bytes(storage.read(entry.path))
    return into
