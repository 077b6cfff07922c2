"""A training checkpoint: the model's files, and what it takes to go on.

    model.safetensors  config.yaml  labels.txt     readable by `model.checkpoint` alone
    trainer.pt         optimizer, schedule, step; loaded with `weights_only=True`
    metrics.json  provenance.json

The position in the data stream needs no file of its own: step s has used s x batch_size rows.
Ray Train names the folders after the step and keeps a snapshot of which are complete.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
import yaml
from safetensors.torch import load_file

from model.checkpoint import WEIGHTS, save_checkpoint
from model.lseg import LSeg
from pipeline.data.storage import open_storage
from pipeline.data.taxonomy import label_text
from pipeline.errors import UserError
from pipeline.training.config import RunConfig, TrainMixConfig

TRAINER = "trainer.pt"
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def save(
    folder: Path,
    lseg: LSeg,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    step: int,
    config: TrainMixConfig,
    labels: Sequence[str],
    metrics: dict[str, float],
    provenance: dict[str, Any],
) -> None:
    """Writes a checkpoint after `step` steps into an existing folder."""
    extra = {key: value for key, value in plain(config).items() if key != "model"}
    texts = [label_text(label) for label in labels]
    save_checkpoint(folder, lseg, labels, extra_config=extra, texts=texts)
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    # The rule of the schedule is a function of the configuration, not state.
    state["schedule"].pop("lr_lambdas", None)
    torch.save(state, folder / TRAINER)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def restore(
    source: ray.train.Checkpoint,
    lseg: LSeg,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> int:
    """Loads a checkpoint into a freshly built model, optimizer and schedule.

    Returns:
        Steps done.
    """
    with source.as_directory() as folder:
        lseg.load_state_dict(load_file(Path(folder) / WEIGHTS, device=str(device)))
        state = torch.load(Path(folder) / TRAINER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(schedule.base_lrs)})
    torch.set_rng_state(state["torch_rng"])
    return int(state["step"])


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


def check_resumable(config: TrainMixConfig, labels: Sequence[str]) -> None:
    """Refuses to resume a run whose network or labels are others than now configured.

    Raises:
        UserError: Names the first difference.
    """
    step = latest_step(config.run)
    if not step:
        return
    storage = open_storage(config.run.storage)
    folder = f"{config.run.name}/{name_of(step)}"
    saved = yaml.safe_load(storage.read(f"{folder}/config.yaml"))
    now = plain(config)
    pairs = [
        ("model", saved["model"], now["model"]),
        ("train.batch_size", saved["train"]["batch_size"], now["train"]["batch_size"]),
        ("run.seed", saved["run"]["seed"], now["run"]["seed"]),
        ("train.labels", storage.read(f"{folder}/labels.txt").decode().splitlines(), list(labels)),
    ]
    for key, before, after in pairs:
        difference = _first_difference(key, before, after)
        if difference:
            raise UserError(
                f"run.name={config.run.name}: {folder} in {config.run.storage} was trained with "
                f"another {difference}: give the run another name, or restore the setting"
            )


def plain(config: Any) -> dict[str, Any]:
    """A configuration as YAML and JSON know it: dicts, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(config), default=str))


def _first_difference(key: str, before: Any, after: Any) -> str | None:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            found = _first_difference(f"{key}.{name}", before.get(name), after.get(name))
            if found:
                return found
        return None
    if before == after:
        return None
    if isinstance(before, list) and isinstance(after, list):
        examples = [*(x for x in after if x not in before), *(x for x in before if x not in after)]
        return f"{key} ({len(before)} of them, now {len(after)}; differing: {examples[:3]})"
    return f"{key} ({before!r}, now {after!r})"


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
