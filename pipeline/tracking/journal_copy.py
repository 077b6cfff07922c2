"""A copy of a run's journal, and of the run's identity, in the run's storage: nodes vanish.

A run in S3 keeps its journal on the disk of one node. The copy lets another node continue the same
MLflow run, and `jobs/track.py --replay s3://...` send what was left. It is best effort: made by
threads that training does not wait for, now and then, so that what is newer may be lost.
"""

import logging
import threading

from pipeline.storage.open import open_storage
from pipeline.tracking.records import RunIdentity, identity_bytes, identity_from

logger = logging.getLogger(__name__)

_LAST_COPY_S = 10.0


class JournalCopy:
    """The files of a run's tracking in a folder of a storage."""

    def __init__(self, folder: str, name: str) -> None:
        """Prepares without any call; the folder is the run's, `s3://bucket/runs/mine`."""
        self.uri = f"{folder}/{name}"
        self.is_known = False
        """Whether what an earlier process left is in the journal: only then it may be replaced."""
        self._folder, self._lines = folder, name
        self._identity = f"{name.removesuffix('.jsonl')}.run.json"
        self._is_stored = False
        self._thread: threading.Thread | None = None
        self._failed = False

    def read(self) -> tuple[RunIdentity | None, bytes]:
        """Returns what an earlier process of the run left, perhaps on another node."""
        try:
            storage, names = open_storage(self._folder), (self._identity, self._lines)
            identity, lines = (storage.read(n) if storage.exists(n) else b"" for n in names)
        except Exception as error:  # The run does not depend on it.
            logger.warning("%s cannot be read: %s", self.uri, error)
            return None, b""
        self.is_known, self._is_stored = True, bool(lines)
        return identity_from(identity), lines

    def begin(self, identity: RunIdentity, lines: bytes | None = None) -> bool:
        """Starts to store the identity and the lines; not while an earlier copy is on its way.

        The lines are what MLflow lacks; empty: deletes the copied lines; None: leaves them alone.
        """
        if not self.is_known or (self._thread is not None and self._thread.is_alive()):
            return False
        self._thread = threading.Thread(
            target=self._store, args=(identity, lines), name="journal-copy", daemon=True
        )
        self._thread.start()
        return True

    def drop(self, identity: RunIdentity) -> None:
        """Starts to delete the copied lines, if there are any: MLflow has them."""
        if self._is_stored:
            self.begin(identity, b"")

    def end(self, identity: RunIdentity, lines: bytes) -> str:
        """Stores the last lines; returns their address if that was done in time."""
        if not lines and not self._is_stored:
            return ""
        if self._thread is not None:
            self._thread.join(_LAST_COPY_S / 2)
        if self.begin(identity, lines) and self._thread is not None:
            self._thread.join(_LAST_COPY_S / 2)
            if not self._thread.is_alive() and not self._failed:
                return self.uri
        reason = "does not answer" if self.is_known else "could not be read"
        logger.warning("%s: not up to date, the storage %s", self.uri, reason)
        return ""

    def _store(self, identity: RunIdentity, lines: bytes | None) -> None:
        try:
            storage = open_storage(self._folder)
            storage.write(self._identity, identity_bytes(identity))
            if lines:
                self._is_stored = True
                storage.write(self._lines, lines)
            elif lines is not None:
                storage.delete(self._lines)
                self._is_stored = False
            self._failed = False
        except Exception as error:  # Neither the run nor its record depends on it.
            if not self._failed:
                logger.warning("no copy of the tracking's journal: %s", error)
            self._failed = True
