"""Writes the checkpoints of a run without holding it up, and outlasts a store that fails.

Worker 0 writes a local folder; a thread of Ray Train copies it to the run's storage. While the
storage fails (a full disk, an object store that is down) the copy is tried again and again, and
training goes on; only when it failed for `train.storage_patience_s` does the attempt end, to be
started anew by Ray from the last complete checkpoint.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train

from pipeline.data.storage import open_storage
from pipeline.errors import UserError
from pipeline.training import checkpoint, order
from pipeline.training.job import Job
from pipeline.training.state import TrainingState
from pipeline.training.tracking import Tracker

logger = logging.getLogger(__name__)

BEST = "best.json"
"""In the run's folder: which checkpoint was the best so far."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_LOST_IN_A_ROW = 3


class Saver:
    """Writes the checkpoints of one worker; every worker calls `save` after the same steps."""

    def __init__(
        self, job: Job, state: TrainingState, rank: int, tracker: Tracker | None = None
    ) -> None:
        self._job, self._state, self._rank, self._tracker = job, state, rank, tracker
        self._run, self._train = job.config.run, job.config.train
        self._store: Any = ray.train.get_context().get_storage()
        self._lost = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="best")
        self._pending: Future[None] | None = None
        self._best = self._read_best() if rank == 0 and self._train.keep_best else None

    def save(self, metrics: dict[str, float], *, must: bool) -> None:
        """Reports a checkpoint of the state.

        Args:
            metrics: Of this step, beside it.
            must: The run ends here: a checkpoint that cannot be written is an error, and not
                only a later one's task.

        Raises:
            UserError: There is no room for the local folder.
        """
        step = self._state.step
        report = {"step": step, **metrics, "order": order.summary(self._state.order)}
        name = checkpoint.name_of(step)
        folder = self._written(checkpoint.save, report, must) if self._rank == 0 else None
        if folder is None:
            # Ray waits for the reports of all workers; a checkpoint comes from the first alone.
            ray.train.report(report, checkpoint_dir_name=name)
            return
        ray.train.report(
            report,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
        )

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Keeps the model (not what it takes to train on) if no validation was better."""
        metric = self._train.keep_best
        if self._rank != 0 or metric not in metrics:
            return
        value = metrics[metric]
        if self._best and not value > self._best["value"]:
            return
        self.wait()
        step = self._state.step
        folder = self._written(checkpoint.save_model, {"step": step, **metrics}, must=False)
        if folder is not None:
            before, name = self._best, f"best_{step:08d}"
            self._best = {"step": step, "metric": metric, "value": value, "folder": name}
            self._pending = self._thread.submit(self._replace_best, folder, self._best, before)

    def wait(self) -> None:
        """Waits until the best model is where it belongs."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _written(
        self, write: Callable[..., None], metrics: dict[str, Any], must: bool
    ) -> Path | None:
        """A local folder with a checkpoint; None where the local disk has no room for it."""
        folder = Path(tempfile.mkdtemp(prefix="lseg-checkpoint-"))
        job = self._job
        tags = job.tags | {"mlflow_run_id": (self._tracker and self._tracker.run_id) or ""}
        try:
            write(folder, self._state, job.config, job.labels, metrics, tags)
        except Exception as error:  # safetensors has an exception of its own for a full disk
            shutil.rmtree(folder, ignore_errors=True)
            self._lost += 1
            if must or self._lost >= _LOST_IN_A_ROW:
                raise UserError(
                    f"{folder.parent}: the checkpoint after step {self._state.step} cannot be "
                    f"written there ({error}): make room, or set TMPDIR to a folder with room on "
                    "every node; the same command goes on from the last checkpoint that was stored"
                ) from None
            logger.error(
                "step %d: no checkpoint, since %s cannot be written (%s); training goes on",
                self._state.step,
                folder.parent,
                error,
            )
            return None
        self._lost = 0
        return folder

    def _upload(self, local: Any, name: str) -> Any:
        """Copies a checkpoint to the storage; on a thread, and as often as it takes."""
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                stored = self._store.persist_current_checkpoint(local, name)
            except Exception as error:
                waited = time.monotonic() - began
                if waited + pause > self._train.storage_patience_s:
                    raise UserError(
                        f"run.storage={self._run.storage}: checkpoint {name} was not stored in "
                        f"{waited:.0f} s (train.storage_patience_s="
                        f"{self._train.storage_patience_s:g}): {error}: make room or see to the "
                        "store; the same command goes on from the last checkpoint that was stored"
                    ) from None
                logger.warning("%s: not stored, again in %.0f s: %s", name, pause, error)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                if pause > _FIRST_PAUSE_S:
                    logger.warning("%s: stored after all", name)
                return stored

    def _replace_best(
        self, folder: Path, best: dict[str, Any], before: dict[str, Any] | None
    ) -> None:
        try:
            self._upload(ray.train.Checkpoint.from_directory(folder), best["folder"])
            storage = open_storage(self._run.storage)
            data = json.dumps(best, indent=1) + "\n"
            storage.write(f"{self._run.name}/{BEST}", data.encode())
            if before and before["folder"] != best["folder"]:
                gone = self._store.build_checkpoint_path_from_name(before["folder"])
                self._store.storage_filesystem.delete_dir(gone)
        except Exception as error:  # The run does not depend on it.
            logger.error("the best model, of step %d, was not kept: %s", best["step"], error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read_best(self) -> dict[str, Any] | None:
        storage, path = open_storage(self._run.storage), f"{self._run.name}/{BEST}"
        return json.loads(storage.read(path)) if storage.exists(path) else None
