"""Which checkpoints of a run are complete: Ray Train's snapshot of them, read, copied and repaired.

Ray Train names the folders after the step, as it is asked to, and resumes from what its snapshot
says. It writes that file in place: a disk that is full at that moment leaves it empty.
"""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import ray.train

from model.checkpoint_files import DIGESTS
from pipeline.checkpoints.files import METRICS, TRAINER, step_folder, step_of
from pipeline.checkpoints.whole import fault_of
from pipeline.errors import UserError
from pipeline.ray_internals import SNAPSHOT, guard_snapshots, new_snapshot
from pipeline.storage.open import open_storage
from pipeline.storage.retry import retry
from pipeline.training.config import RunConfig

logger = logging.getLogger(__name__)

_SPARE = "checkpoint_manager_snapshot.spare.json"


def latest_step(run: RunConfig) -> int:
    """Returns the steps done in the newest complete checkpoint of a run; 0 when there is none."""
    storage, path = open_storage(run.storage), f"{run.name}/{SNAPSHOT}"
    if not storage.exists(path):
        return 0
    latest = _parsed(storage.read(path)).get("latest_checkpoint_result")
    return step_of(latest["checkpoint_dir_name"]) if latest else 0


def address_of(run: RunConfig, step: int) -> str:
    """Names the checkpoint of a run after `step` steps: a path or an s3:// address."""
    return f"{run.storage}/{run.name}/{step_folder(step)}"


def _parsed(data: bytes) -> dict[str, Any]:
    """Reads a snapshot.

    Raises:
        ValueError: It is torn, or names what is no folder of a checkpoint.
    """
    try:
        state = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    results = state.setdefault("checkpoint_results", []) if isinstance(state, dict) else None
    if not isinstance(results, list):
        raise ValueError("it holds no list of checkpoints")
    latest = state.get("latest_checkpoint_result")
    for result in [*results, *([latest] if latest else [])]:
        name = result.get("checkpoint_dir_name") if isinstance(result, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"step_\d{8,}", name):
            raise ValueError(f"it names {str(name)[:40]!r} as a checkpoint")
    return state


class SnapshotKeeper(ray.train.UserCallback):
    """Outlasts a storage that does not take the snapshot, and keeps a second copy of it.

    Without the copy, a torn snapshot means a run that cannot resume though its checkpoints are
    whole. Ray deletes older checkpoints only after the snapshot was written, so the copy before it
    is still true.
    """

    def __init__(self, run: RunConfig, patience_s: float = 0.0) -> None:
        self._run, self._patience_s = run, patience_s

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrives in the controller's process, before the first snapshot."""
        self.__dict__.update(state)
        guard_snapshots(self._write)

    def _write(self, write: Callable[[], None]) -> None:
        place = f"{self._run.storage}/{self._run.name}"
        failing, succeeded = f"{place}: {SNAPSHOT} is not stored", f"{place}: stored after all"
        retry(write, self._patience_s, failing, succeeded)

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Copies the snapshot that this report has changed."""
        if checkpoint is None:
            return
        try:
            storage = open_storage(self._run.storage)
            snapshot = storage.read(f"{self._run.name}/{SNAPSHOT}")
            storage.write(f"{self._run.name}/{_SPARE}", snapshot)
        except Exception as error:  # It is a spare: the run does not depend on it.
            logger.warning("no second copy of the run's snapshot: %s", error)


def repair(run: RunConfig) -> int:
    """Replaces a torn snapshot by the copy of the one before, and a missing one by a new one.

    Returns:
        Steps done in the newest complete checkpoint; 0 when there is none.

    Raises:
        UserError: The snapshot names a checkpoint that is not there.
    """
    storage = open_storage(run.storage)
    path, spare = f"{run.name}/{SNAPSHOT}", f"{run.name}/{_SPARE}"
    if not storage.exists(path):
        return _taken_up(run)
    try:
        snapshot = _parsed(storage.read(path))
    except ValueError:
        try:
            data = storage.read(spare)
            snapshot = _parsed(data)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, UserError):  # The storage does not answer.
                raise
            if step := _taken_up(run):
                return step
            logger.warning("%s is torn, and no checkpoint was complete: starting over", path)
            storage.delete(path)
            return 0
        logger.warning("%s is torn: taking the one of the checkpoint before", path)
        storage.write(path, data)
    latest = snapshot.get("latest_checkpoint_result")
    for result in snapshot.get("checkpoint_results", []):
        folder = f"{run.name}/{result['checkpoint_dir_name']}"
        # The newest is looked at more closely by `newest_whole`, which takes the one before it.
        if result != latest and not storage.exists(f"{folder}/{TRAINER}"):
            raise UserError(
                f"run.name={run.name}: its checkpoint {folder} in {run.storage} is gone or not "
                "whole, and Ray Train resumes only where all that it knows of are there: put it "
                "back, or give the run another name"
            )
    return step_of(latest["checkpoint_dir_name"]) if latest else 0


def _taken_up(run: RunConfig) -> int:
    """Makes a snapshot of the checkpoints that are there and whole by their own record.

    A process that dies between the first checkpoint and the first snapshot leaves such a run.

    Returns:
        Steps done in the newest one; 0 when there is none.
    """
    storage, found = open_storage(run.storage), dict[str, dict[str, Any]]()
    for folder in filter(step_of, storage.folders(run.name)):
        place = f"{run.name}/{folder}"
        if not storage.exists(f"{place}/{DIGESTS}") or fault_of(storage, place):
            continue  # The process died while it copied this one.
        try:
            metrics = json.loads(storage.read(f"{place}/{METRICS}"))
        except (FileNotFoundError, ValueError):
            metrics = {}
        found[folder] = {**metrics, "step": step_of(folder)}
    if not found:
        return 0
    storage.write(f"{run.name}/{SNAPSHOT}", new_snapshot(found).encode())
    newest = list(found)[-1]
    logger.warning(
        "run %s: no list of its checkpoints: taking up %s, a whole one", run.name, newest
    )
    return step_of(newest)


def newest_whole(run: RunConfig) -> int:
    """Makes the run go on from its newest checkpoint whose files are all whole.

    Newer ones, which were cut off or lost a file, are taken out of the snapshot; their folders stay
    until training writes them anew.

    Returns:
        Steps done in that checkpoint; 0 when the run has none.

    Raises:
        UserError: No checkpoint of the run is whole; names a file.
    """
    storage, path = open_storage(run.storage), f"{run.name}/{SNAPSHOT}"
    if not storage.exists(path):
        return 0
    state = _parsed(storage.read(path))
    latest = state.get("latest_checkpoint_result")
    if not latest:
        return 0
    known = {step_of(r["checkpoint_dir_name"]): r for r in (*state["checkpoint_results"], latest)}
    faults: list[str] = []
    for step in sorted(known, reverse=True):
        fault = fault_of(storage, f"{run.name}/{step_folder(step)}")
        if not fault:
            break
        faults.append(f"{step_folder(step)}: {fault}")
    else:
        raise UserError(
            f"run.name={run.name}: none of its checkpoints in {run.storage}/{run.name} is whole "
            f"({'; '.join(faults[:3])}): put the file back, or give the run another name to start "
            "over"
        )
    if faults:
        logger.warning(
            "run %s: not every checkpoint is whole (%s): it goes on from %s, the newest whole one",
            run.name,
            "; ".join(faults),
            step_folder(step),
        )
        results = state["checkpoint_results"]
        kept = [n for n, r in enumerate(results) if step_of(r["checkpoint_dir_name"]) <= step]
        # Ray keeps a list beside this one, and refuses a snapshot in which they differ in length.
        for key in ("checkpoint_results", "checkpoint_report_indices"):
            if len(state.get(key, ())) == len(results):
                state[key] = [state[key][n] for n in kept]
        state["latest_checkpoint_result"] = known[step]
        storage.write(path, json.dumps(state).encode())
    return step
