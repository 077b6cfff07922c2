"""A copy of a run's spill file, and of the run's identity, in the run's storage: nodes vanish.

A run in S3 keeps its spill file on the disk of one node. The copy lets another node go on as the
same MLflow run, and `jobs/track.py --replay s3://...` send what was left. It is best effort: made
by threads that nobody waits for while training, now and then, so that what is newer may be lost.
"""

import logging
import threading
from collections.abc import Mapping

from pipeline.storage.open import open_storage
from pipeline.tracking.spill import RunIdentity, identity_from

logger = logging.getLogger(__name__)


class SpillCopy:
    """The files of a run's tracking in a folder of a storage."""

    def __init__(self, folder: str, name: str) -> None:
        """Prepares without any call.

        Args:
            folder: The run's, `s3://bucket/runs/mine`.
            name: Of the spill file.
        """
        self.uri = f"{folder}/{name}"
        self.lines = name
        """Name of the copied spill file."""
        self.identity = f"{name.removesuffix('.jsonl')}.run.json"
        """Name of the copied identity."""
        self.is_stored = False
        """Whether the storage may hold lines."""
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._failed = False

    def read(self) -> tuple[RunIdentity | None, bytes]:
        """What an earlier process of the run left, perhaps on another node.

        Raises:
            UserError: The storage does not answer.
        """
        storage = open_storage(self._folder)
        found = {}
        for name in (self.identity, self.lines):
            try:
                found[name] = storage.read(name)
            except FileNotFoundError:
                found[name] = b""
        self.is_stored = bool(found[self.lines])
        try:
            return identity_from(found[self.identity]), found[self.lines]
        except (ValueError, TypeError):
            return None, found[self.lines]

    def begin(self, files: Mapping[str, bytes]) -> bool:
        """Starts to store files by name, and to delete those without content.

        Returns:
            Whether it did: not while an earlier copy is on its way.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(
            target=self._store, args=(dict(files),), name="spill-copy", daemon=True
        )
        self._thread.start()
        return True

    def end(self, files: Mapping[str, bytes], timeout_s: float) -> bool:
        """Stores the last files; returns whether that was done in time."""
        if self._thread is not None:
            self._thread.join(timeout_s / 2)
        if not self.begin(files):
            return False
        assert self._thread is not None
        self._thread.join(timeout_s / 2)
        return not self._thread.is_alive() and not self._failed

    def _store(self, files: Mapping[str, bytes]) -> None:
        try:
            storage = open_storage(self._folder)
            for name, data in files.items():
                if data:
                    self.is_stored = self.is_stored or name == self.lines
                    storage.write(name, data)
                else:
                    storage.delete(name)
                    self.is_stored = self.is_stored and name != self.lines
            self._failed = False
        except Exception as error:  # Neither the run nor its record depends on it.
            if not self._failed:
                logger.warning("no copy of the tracking's spill file: %s", error)
            self._failed = True
