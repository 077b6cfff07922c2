"""Writes the checkpoints of a run without delaying it, and outlasts a storage that fails.

    training thread       writer                   a thread of Ray Train
    copy in host memory > folder on the own disk > the run's storage

Worker 0 copies the state, and a thread of its own writes the copy to a local folder while the next
steps are made. There is memory for one copy: a checkpoint waits until the one before is written.
Once it is, every worker reports it, and Ray Train copies it to the run's storage. While the storage
fails (a full disk, an object store that is down) that is tried again and again, and training goes
on; only when it failed for `train.storage_patience_s` does the attempt end, and Ray starts a new
one from the last complete checkpoint. What waits on the local disk is bounded.
"""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train
from safetensors import SafetensorError

from pipeline import monitoring
from pipeline.checkpoints.files import step_folder, step_of
from pipeline.checkpoints.whole import write_digests
from pipeline.errors import Outage, UserError
from pipeline.ray_internals import RunStorage
from pipeline.storage.retry import retry
from pipeline.tracking.tracker import Tracker
from pipeline.training.job import Job
from pipeline.training.saving import checkpoint
from pipeline.training.saving.best import BestModel
from pipeline.training.saving.checkpoint import Content, content_of
from pipeline.training.saving.host_copy import HostCopy
from pipeline.training.saving.local_folders import LocalFolders
from pipeline.training.saving.logged import (
    BEST_TAG,
    LAST_TAG,
    address_of,
    logged_checkpoint,
)
from pipeline.training.state import order
from pipeline.training.state.state import TrainingState

logger = logging.getLogger(__name__)

_LOST_IN_A_ROW = 3
"""Checkpoints that find no room on the local disk before that ends the run."""
_RUN_WAIT_S = 10.0
"""How long the last checkpoint waits for MLflow to name its run."""
_MOST_ON_THEIR_WAY = 2
"""Checkpoints that may wait for the storage; later ones are left out until one has arrived."""


class Saver:
    """Writes the checkpoints of one worker; every worker calls its methods after the same steps."""

    def __init__(
        self, job: Job, state: TrainingState, rank: int, tracker: Tracker | None = None
    ) -> None:
        self._job, self._state, self._rank, self._tracker = job, state, rank, tracker
        self._run, self._train = job.plan.config.run, job.plan.config.train
        self._storage = RunStorage()
        self._lost = self._on_their_way = 0
        self._newest_step = 0  # Of the checkpoints that the storage took from this worker.
        self._outage: Outage | None = None  # What kept a checkpoint from it.
        self._lock = threading.Condition()  # Told of each checkpoint whose way has ended.
        self._folders = LocalFolders(self._run)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._copy = HostCopy()
        self._content: Content | None = None  # What it holds.
        self._writing: Future[Any] | None = None  # What the writer was given last.
        self._due: dict[str, Any] | None = None  # The report of a checkpoint, until it is made.
        self._written: Future[Path | None] | None = None  # Its folder, on worker 0.
        self._best: BestModel | None = None
        self.defect: Exception | None = None
        """What kept this worker from writing the state, and would keep it from it again."""
        if rank == 0:
            monitoring.CHECKPOINT_TIME.set(time.time(), run=self._run.name)
            monitoring.CHECKPOINTS.start(run=self._run.name)
            monitoring.CHECKPOINTS_LEFT_OUT.start(run=self._run.name)
            self._folders.remove_left()
            if self._train.keep_best:
                self._best = BestModel(
                    job.plan.config, self._storage, self._upload, self._folders, self._tell_best
                )

    @property
    def news(self) -> int:
        """1 on the worker whose checkpoint is written, or could not be, and is to be reported."""
        if self._rank != 0:
            return 0
        ready = self._due is not None and (self._written is None or self._written.done())
        return int(ready or self.defect is not None)

    def save(
        self, metrics: dict[str, float], *, required: bool, bypass_backlog: bool = False
    ) -> None:
        """Has a checkpoint of the state written; `report` is to be called once it is.

        Args:
            metrics: Metrics of this step, which are stored with the checkpoint.
            required: The run ends here, so a checkpoint that cannot be written is an error; at
                other steps a later one makes up for it.
            bypass_backlog: Write it even though others are still on their way to the storage.

        Raises:
            UserError: There was no room for the local folder of the one before.
        """
        step = self._state.step
        self.report(f"step {step}: the checkpoint")
        self._due = {"step": step, **metrics, "order": order.summary(self._state.order)}
        if self._rank == 0 and not self._backlog_full(required or bypass_backlog):
            content = self._take()
            self._written = self._writing = self._writer.submit(
                self._write_local, content, self._due, required
            )

    def report(self, waiting: str = "") -> None:
        """Reports the checkpoint that was saved last to Ray Train, if that is still to be done.

        Args:
            waiting: What waits until it is written, for the log.

        Raises:
            UserError: There is no room for its local folder.
        """
        due, written = self._due, self._written
        self._due = self._written = None
        if due is None:
            return
        local = None
        if written is not None:
            if waiting and not written.done():
                logger.warning("%s waits until that of step %d is written", waiting, due["step"])
            folder = written.result()
            if folder is not None:
                local = ray.train.Checkpoint.from_directory(folder)
                # Counted before Ray's thread can start: it counts down when the upload has ended.
                with self._lock:
                    self._on_their_way += 1
        # Last, and by every worker, with a checkpoint or without: Ray waits for the reports of all.
        # A report without a checkpoint would wait for those before it too, if it were not ASYNC.
        ray.train.report(
            due,
            checkpoint=local,
            checkpoint_dir_name=step_folder(due["step"]),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._store_and_forget,
            delete_local_checkpoint_after_upload=False,
        )

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Keeps the model (not what continuing its training takes) if no validation was better."""
        value = metrics.get(self._train.keep_best)
        if self._best is None or value is None:
            return
        self._settle()  # Only what is written counts among those that this one must beat.
        if self._best.is_beaten_by(value):
            report = {"step": self._state.step, **metrics}
            content = self._take(resumable=False)
            self._writing = self._writer.submit(self._write_best, content, report, value)

    def _tell_best(self, step: int, folder: Path, name: str) -> None:
        """Makes the best model, which the storage has now, the run's model in MLflow."""
        if self._tracker is None:
            return
        address = address_of(self._run, name)
        try:
            self._tracker.set_tags({BEST_TAG: address})
            self._tracker.log_model(logged_checkpoint(folder, address, step, self._job.run_tags()))
        except Exception as error:  # Neither the checkpoint nor the run depends on it.
            logger.warning("the best model, of step %d, is not shown in MLflow: %s", step, error)

    def wait(self) -> None:
        """Reports what is still to be reported, and waits until all is stored.

        Ray would wait for the checkpoints too, but after the run was called finished in MLflow.

        Raises:
            Outage: A checkpoint was not stored.
        """
        self.report()
        self._settle()
        if self._best is not None:
            self._best.wait()
        with self._lock:
            self._lock.wait_for(lambda: not self._on_their_way)
        if self._outage is not None:
            raise self._outage

    def _settle(self) -> None:
        """Waits until the writer has nothing to do; raises what it met."""
        if self._writing is not None:
            self._writing.result()

    def _take(self, resumable: bool = True) -> Content:
        """Copies the state, when what the memory holds of another step is written."""
        if self._content is None or self._content.step != self._state.step:
            self._settle()
        self._content = content_of(self._state, self._copy, self._content, resumable)
        return self._content

    def _backlog_full(self, bypassed: bool) -> bool:
        """Whether so many checkpoints wait for the storage that this one is left out."""
        with self._lock:
            count = self._on_their_way
        if bypassed or count < _MOST_ON_THEIR_WAY:
            return False
        monitoring.CHECKPOINTS_LEFT_OUT.add(run=self._run.name)
        logger.warning(
            "step %d: no checkpoint, since %d are still on their way to run.storage; training "
            "goes on",
            self._state.step,
            count,
        )
        return True

    def _write_best(self, content: Content, metrics: dict[str, Any], value: float) -> None:
        folder = self._write_local(content, metrics, required=False)
        if folder is not None and self._best is not None:
            self._best.keep(content.step, value, folder)

    def _write_local(
        self, content: Content, metrics: dict[str, Any], required: bool
    ) -> Path | None:
        """Writes a checkpoint to this node's disk; on the writer's thread.

        Returns:
            None where there is no room for it, or after a defect, which is kept: the other workers
            wait for a report, and must learn of it before any of them ends.
        """
        job, folder = self._job, None
        try:
            # Asked first, because it may wait: a full disk is judged at the moment of writing.
            tags = job.tags | {"mlflow_run_id": self._mlflow_run_id(content.step)}
            provenance = checkpoint.provenance_of(job.plan.config, job.plan.labels, metrics, tags)
            folder = self._folders.new()
            checkpoint.save(folder, content, provenance)
        except Exception as error:
            # The half-written folder goes at once: its room is what the next checkpoint needs.
            if folder is not None:
                self._folders.remove(folder)
            # Room may come back; what is wrong with the state or the code does not pass.
            if not _is_of_the_disk(error):
                self.defect = self.defect or error
                return None
            self._lost += 1
            monitoring.CHECKPOINTS_LEFT_OUT.add(run=self._run.name)
            if required or self._lost >= _LOST_IN_A_ROW:
                raise UserError(
                    f"{self._folders.place}: the checkpoint after step {content.step} cannot "
                    f"be written there ({error}): make room, or set TMPDIR to a folder with room "
                    "on every node; the same command goes on from the last checkpoint that was "
                    "stored"
                ) from None
            logger.error(
                "step %d: no checkpoint, since %s cannot be written (%s); training goes on",
                content.step,
                self._folders.place,
                error,
            )
            return None
        self._lost = 0
        return folder

    def _mlflow_run_id(self, step: int) -> str:
        """The MLflow run, for later evaluations; empty while MLflow does not answer."""
        if self._tracker is None:
            return ""
        # A run of seconds ends before a new server has made its run.
        is_last = step == self._train.steps
        return self._tracker.wait_for_run(_RUN_WAIT_S if is_last else 0.0) or ""

    def _store_and_forget(self, local: ray.train.Checkpoint, name: str) -> Any:
        """Copies a checkpoint to the storage and removes it here; on a thread of Ray Train."""
        try:
            stored = self._upload(local, name)
            monitoring.CHECKPOINT_TIME.set(time.time(), run=self._run.name)
            monitoring.CHECKPOINTS.add(run=self._run.name)
            self._tell_last(name)
            return stored
        except Outage as error:
            self._outage = error
            raise
        finally:
            # The folder first: what counts as off its way must not take room on the disk any more.
            self._folders.remove(Path(local.path))
            with self._lock:
                self._on_their_way -= 1
                self._lock.notify_all()

    def _tell_last(self, name: str) -> None:
        """Names the newest checkpoint that the storage has; uploads may end in another order."""
        with self._lock:
            if self._tracker is not None and step_of(name) > self._newest_step:
                self._newest_step = step_of(name)
                self._tracker.set_tags({LAST_TAG: address_of(self._run, name)})

    def _upload(self, local: ray.train.Checkpoint, name: str) -> Any:
        """Copies a folder to the storage, as often as it takes."""
        began = time.monotonic()
        try:
            # On this thread, because it reads all that was written.
            write_digests(Path(local.path))
        except OSError as error:
            logger.warning("%s: stored without the digests of its files: %s", name, error)
        try:
            return retry(
                lambda: self._storage.upload(local, name),
                self._train.storage_patience_s,
                f"{name}: not stored",
                f"{name}: stored after all",
            )
        except Exception as error:
            # Ray repeats an upload whose error reads "AWS Error ...", and this one was repeated
            # long enough.
            reason = str(error).replace("AWS Error", "AWS error")
            raise Outage(
                f"run.storage={self._run.storage}: checkpoint {name} was not stored in "
                f"{time.monotonic() - began:.0f} s (train.storage_patience_s="
                f"{self._train.storage_patience_s:g}): {reason}: make room or see to the store; "
                "the same command goes on from the last checkpoint that was stored"
            ) from None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a file could not be written, for which each library has an exception of its own."""
    if isinstance(error, SafetensorError):
        return "os error" in str(error).lower() or "i/o" in str(error).lower()
    if isinstance(error, RuntimeError):  # torch.save's, whose archive writer is not Python's.
        return any(word in str(error) for word in ("PytorchStreamWriter", "unexpected pos"))
    return isinstance(error, OSError)
