"""The best model of a run so far, beside its checkpoints: stored while training continues."""

import json
import logging
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train

from pipeline.ray_internals import RunStorage
from pipeline.storage.open import open_storage
from pipeline.storage.retry import retry
from pipeline.training.config import TrainMixConfig
from pipeline.training.saving.local_folders import LocalFolders

logger = logging.getLogger(__name__)

BEST = "best.json"
"""File in the run's folder that names the best model so far."""


@dataclass(frozen=True)
class _Candidate:
    """A model that was the best when it was written, on its way to the storage."""

    step: int
    value: float
    folder: Path
    """Its local folder, on this node."""

    @property
    def name(self) -> str:
        """The name of its folder in the storage."""
        return f"best_{self.step:08d}"


class BestModel:
    """Stores models that are better than all before, one at a time.

    While one is on its way the next waits, and a better one takes its place, so the training thread
    never waits. A model counts as stored only when it is.

    Args:
        upload: Copies a folder to the storage under a name; tries again by itself.
        folders: Where the models wait.
        on_stored: Called with the step, the local folder and the name of each that is stored.
    """

    def __init__(
        self,
        config: TrainMixConfig,
        storage: RunStorage,
        upload: Callable[[ray.train.Checkpoint, str], Any],
        folders: LocalFolders,
        on_stored: Callable[[int, Path, str], None] = lambda *_: None,
    ) -> None:
        self._on_stored = on_stored
        self._run, self._train, self._data = config.run, config.train, config.data
        self._storage, self._upload, self._folders = storage, upload, folders
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="best")
        self._pending: Future[None] | None = None
        self._sending: _Candidate | None = None
        self._waiting: _Candidate | None = None
        self._stored = -math.inf  # The value of the model in the storage, if it counts.
        self._folder = ""  # Of that model, which BEST names; also if its value does not count.
        self._read()
        self._remove_left()

    def is_beaten_by(self, value: float) -> bool:
        """Whether a model would be the best, those included that are on their way."""
        with self._lock:
            under_way = [each.value for each in (self._sending, self._waiting) if each]
            return value > max([self._stored, *under_way])  # Not so for NaN.

    def keep(self, step: int, value: float, folder: Path) -> None:
        """Stores a model soon, instead of the one that waits; its local folder is then removed."""
        with self._lock:
            before, self._waiting = self._waiting, _Candidate(step, value, folder)
            if self._sending is None:
                self._pending = self._thread.submit(self._send)
        if before:
            self._folders.remove(before.folder)

    def wait(self) -> None:
        """Waits until the best model is in the storage."""
        if self._pending is not None:
            self._pending.result()

    def _send(self) -> None:
        while True:
            with self._lock:
                self._sending, self._waiting = self._waiting, None
                candidate = self._sending
            if candidate is None:
                return
            try:
                self._replace(candidate)
            except Exception as error:  # The run does not depend on it.
                logger.error("the best model, of step %d, was not kept: %s", candidate.step, error)
            finally:
                self._folders.remove(candidate.folder)

    def _replace(self, candidate: _Candidate) -> None:
        """Stores a model, names it in BEST, and only then deletes the one before.

        In any other order, a process that dies in between would leave BEST without its model.
        """
        self._upload(ray.train.Checkpoint.from_directory(candidate.folder), candidate.name)
        entry = {"step": candidate.step, "metric": self._train.keep_best, "value": candidate.value}
        entry |= {"folder": candidate.name, "validation": self._validation}
        data = json.dumps(entry, indent=1) + "\n"
        retry(
            lambda: open_storage(self._run.storage).write(self._path, data.encode()),
            self._train.storage_patience_s,
            f"{BEST}: not stored",
        )
        before, self._folder = self._folder, candidate.name
        with self._lock:
            self._stored = candidate.value
        self._on_stored(candidate.step, candidate.folder, candidate.name)
        if before and before != candidate.name:
            try:
                self._storage.delete(before)
            except Exception as error:
                logger.warning("%s, no longer the best model, was not removed: %s", before, error)

    @property
    def _validation(self) -> dict[str, Any]:
        """The images that the metric is of: values over other images cannot be compared."""
        train, data = self._train, self._data
        sets = train.val_datasets
        return {
            "datasets": sets if isinstance(sets, str) else list(sets),
            "split": data.val_split,
            "images": train.val_images,
            "base_px": data.augment.base_px,
        }

    @property
    def _path(self) -> str:
        return f"{self._run.name}/{BEST}"

    def _remove_left(self) -> None:
        """Removes models that BEST does not name: of a process that died as it replaced one."""
        try:
            storage = open_storage(self._run.storage)
            if storage.exists(self._path) and not self._folder:
                return  # It cannot be read, so nobody knows which of them counts.
            for name in storage.folders(self._run.name):
                if re.fullmatch(r"best_\d+", name) and name != self._folder:
                    self._storage.delete(name)
        except Exception as error:
            logger.warning("what an earlier attempt left beside %s stays: %s", self._path, error)

    def _read(self) -> None:
        """Reads what an earlier attempt stored, which counts if it is of the same metric."""
        storage = open_storage(self._run.storage)
        data = retry(
            lambda: storage.read(self._path) if storage.exists(self._path) else None,
            self._train.storage_patience_s,
            "run.storage does not answer",
        )
        if data is None:
            return
        try:
            entry = json.loads(data)
            value, folder = float(entry["value"]), entry["folder"]
            if not re.fullmatch(r"best_\d+", folder):
                raise ValueError(f"folder={folder!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("%s cannot be read (%s): it does not count", self._path, error)
            return
        self._folder = folder
        if math.isnan(value):
            return
        now = {"metric": self._train.keep_best, "validation": self._validation}
        for key in now:
            if entry.get(key) != now[key]:
                logger.warning(
                    "%s is of another %s (%s, now %s): it does not count",
                    self._path,
                    key,
                    entry.get(key),
                    now[key],
                )
                return
        self._stored = value
