"""The model that answers, and the one that takes its place when an alias moves.

A model of the registry is named by an alias (`models:/lseg@champion`) or a version. While a service
runs, the alias may be given to another version, by a re-training or by hand, and back again. The
new network is loaded beside the old one and takes its place at once when it is whole: calls that
the old one has begun are answered by it.
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import is_uri, local
from model.errors import ModelError
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.checkpoints.resolvers import forget, pinned
from pipeline.errors import UserError, printable
from pipeline.inference.served_limits import Limits
from pipeline.inference.served_network import ServedNetwork
from pipeline.serving.tally import TALLY

logger = logging.getLogger(__name__)


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
        TALLY.model(self.current.name)
        self._refused = ""
        self._ends = threading.Event()
        if follow_s > 0 and self.is_followed:
            threading.Thread(target=self._follow, args=(follow_s,), daemon=True).start()

    @property
    def is_followed(self) -> bool:
        """Whether the address names an alias, which may move."""
        return self._pinned != self._uri

    def look(self) -> bool:
        """Looks where the alias leads now, and loads that; whether it leads elsewhere.

        Raises:
            ModelError: The registry does not answer, or the version cannot be loaded; the present
                model goes on.
        """
        now = pinned(self._uri)
        if now == self._pinned:
            self._refused = ""
            return False
        if now == self._refused:
            return False
        try:
            loaded = self._load(now)
        except (ModelError, UserError, FileNotFoundError):
            self._refused = now
            raise
        before, self._pinned = self._pinned, now
        self.current = loaded
        TALLY.model(loaded.name)
        logger.info("%s: %s answers now, after %s", self._uri, loaded.name, before)
        return True

    def close(self) -> None:
        """Stops following."""
        self._ends.set()

    def _load(self, uri: str) -> Loaded:
        folder = local(uri)
        name = uri if is_uri(uri) else Path(uri).resolve().name
        network = ServedNetwork(folder, self._device, self._limits)
        forget(folder)  # A service that lives for years must not keep the files of every version.
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
