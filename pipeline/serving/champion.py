"""The model that answers, and the one that takes its place when an alias moves.

A model of the registry is named by an alias (`models:/lseg@champion`) or a version. While a service
runs, the alias may be given to another version, by a re-training or by hand, and back again. The
new network is loaded beside the old one and takes its place at once when it is whole: calls that
the old one has begun are answered by it. A version that could not be loaded is tried again after
pauses that grow: what failed may have been the storage, and not the version.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import is_uri, local
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.checkpoints.resolvers import forget, pinned
from pipeline.errors import printable
from pipeline.inference.served_limits import Limits
from pipeline.inference.served_network import ServedNetwork
from pipeline.serving.tally import TALLY

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0
"""Seconds until a version that could not be loaded is tried again; they double each time."""


@dataclass(frozen=True)
class Loaded:
    """A network and the name that answers give it."""

    name: str
    network: ServedNetwork


class Champion:
    """Loads a checkpoint, and follows its alias where it has one.

    Args:
        uri: A folder, `s3://bucket/folder`, `models:/name/version` or `models:/name@alias`.
        device: Where the network goes; "auto" takes a GPU where there is one.
        limits: What a call may cost.
        follow_s: Seconds from one look at the alias to the next; 0: it is not followed.

    Raises:
        ModelError: The checkpoint cannot be loaded.
        UserError: Its storage does not answer.
    """

    def __init__(self, uri: str, device: str, limits: Limits, follow_s: float) -> None:
        use_prefetched()
        self._uri, self._limits = uri, limits
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = device
        self._pinned = pinned(uri)
        self.current = self._load(self._pinned)
        TALLY.model()
        self._failed = ""
        """The version that could not be loaded, as long as the alias leads to it."""
        self._pause_s, self._again_at = FIRST_PAUSE_S, 0.0
        self._ends = threading.Event()
        if follow_s > 0 and self.is_followed:
            threading.Thread(target=self._follow, args=(follow_s,), daemon=True).start()

    @property
    def is_followed(self) -> bool:
        """Whether the address names an alias, which may move."""
        return self._pinned != self._uri

    @property
    def is_behind(self) -> bool:
        """Whether the alias led elsewhere at the last look than to what answers."""
        return bool(self._failed)

    def look(self) -> bool:
        """Looks where the alias leads now, and loads that; whether another version answers now.

        Raises:
            ModelError: The registry does not answer, or the version cannot be loaded; the present
                model goes on, and the version is tried again after a pause.
        """
        now = pinned(self._uri)
        if now == self._pinned:
            self._caught_up()
            return False
        if now != self._failed:
            self._pause_s, self._again_at = FIRST_PAUSE_S, 0.0
        elif time.monotonic() < self._again_at:
            return False
        try:
            loaded = self._load(now)
        except Exception:
            self._failed = now
            self._again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            TALLY.behind(True)
            raise
        before, self._pinned = self._pinned, now
        self._caught_up()
        self.current = loaded
        TALLY.model()
        logger.info("%s: %s answers now, after %s", self._uri, loaded.name, before)
        return True

    def _caught_up(self) -> None:
        self._failed = ""
        TALLY.behind(False)

    def close(self) -> None:
        """Stops following."""
        self._ends.set()

    def _load(self, uri: str) -> Loaded:
        folder = local(uri)
        name = uri if is_uri(uri) else Path(uri).resolve().name
        try:
            network = ServedNetwork(folder, self._device, self._limits)
        finally:
            # A service that lives for years must not keep the files of every version.
            forget(folder)
        return Loaded(name, network)

    def _follow(self, follow_s: float) -> None:
        is_away = False
        while not self._ends.wait(follow_s):
            try:
                self.look()
                is_away = False
            except Exception as error:
                # Once, however long it lasts: what answers goes on.
                if not is_away:
                    logger.warning("%s goes on: %s", self.current.name, printable(str(error)))
                is_away = True
                TALLY.add("champion_failures")
