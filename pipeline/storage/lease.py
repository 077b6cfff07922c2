"""A lock on an output that outlives no crash: one conversion at a time writes to a folder.

The lock is an object in the output itself, so it holds between machines. Its holder rewrites it
every few seconds. A lock is taken over when its process is known to be gone, or when it was not
rewritten for a while by the clock of the process that waits; no two clocks are compared. Creating
and replacing are conditional writes, so of several that try at once one succeeds.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import UserError
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

EXPIRES_S = 45.0
"""Seconds without a rewrite after which another process may take the lock over."""
BEAT_S = 5.0
"""Seconds between two rewrites."""


class LeaseHeld(UserError):
    """Another process holds the lock; `holder` are the fields of its lock."""

    def __init__(self, message: str, holder: dict[str, Any]) -> None:
        super().__init__(message)
        self.holder = holder

    @property
    def by(self) -> str:
        """Who holds the lock, since when, and until when if it is not renewed."""
        job = f", Ray job {self.holder['note']}" if self.holder.get("note") else ""
        return (
            f"process {self.holder.get('pid', '?')} on {self.holder.get('host', '?')}{job}, since "
            f"{self.holder.get('since', '?')}, until {self.holder.get('until', '?')} unless it is "
            "renewed"
        )


class LeaseLost(UserError):
    """The lock was held, and another process has taken it over."""


class Lease:
    """Holds the lock while the `with` block lasts.

    Args:
        storage: The output.
        path: The lock's place in it.
        expires_s: See EXPIRES_S; the same for all who share the lock.
        beat_s: See BEAT_S.
        note: A text that the lock holds, for processes that find it taken.

    Entering raises LeaseHeld when another process holds the lock, which takes up to `beat_s` to
    find out when that is on another machine; when its holder is silent there, it takes
    `expires_s` until the lock is taken over.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        expires_s: float = EXPIRES_S,
        beat_s: float = BEAT_S,
        note: str = "",
    ) -> None:
        self._storage = storage
        self._path = path
        self._expires_s = expires_s
        self._beat_s = beat_s
        self._identity = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": _host_id(),
            "started": psutil.Process().create_time(),
            "since": _clock(),
            "note": note,
        }
        self._beats = 0
        self._current = self._content()
        self._beaten_at = time.monotonic()
        self._is_lost = False
        self._on_loss: Callable[[], object] = lambda: None
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        while not self._storage.create(self._path, self._current):
            found = self._read()
            if found is None:  # released just now
                continue
            if self._is_ours(found):  # Its answer alone got lost.
                break
            holder = _parse(found)
            if _lives(holder) is not False:
                found = self._watch(found, holder)
                if found is None:
                    continue
            if self._storage.replace(self._path, self._current, found):
                text = f"took over the lock of a run that is gone ({_name(holder)})"
                logger.warning(f"{self._storage.uri}: {text}")
                break
        self._beaten_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            found = self._read()
            if found is not None and self._is_ours(found):
                self._storage.delete(self._path)
        except UserError as problem:
            # It expires by itself; what happened in the block matters more.
            logger.warning("%s: the lock stays: %s", self._storage.uri, problem)

    def on_loss(self, call: Callable[[], object]) -> None:
        """Says what to do, on the lock's thread, when another run has taken the lock over."""
        self._on_loss = call

    def check(self) -> None:
        """Makes sure that the lock is still held, before something that only its holder may do.

        Raises:
            LeaseLost: Another run has taken it over, since this one was silent for too long.
        """
        if time.monotonic() - self._beaten_at > self._expires_s / 2:
            self._beat()
        if self._is_lost:
            found = self._read()
            by = f" ({_name(_parse(found))})" if found else ""
            raise LeaseLost(
                f"{self._storage.uri}: another run{by} has taken over this output while this one "
                "was silent: let that one finish"
            )

    def _watch(self, found: bytes, holder: dict[str, Any]) -> bytes | None:
        """Waits until a lock has expired.

        Returns:
            Its last content, or None when it was released.

        Raises:
            LeaseHeld: Its holder lives.
        """
        if _lives(holder):
            raise self._taken(holder)
        place = f"{self._storage.uri}: is locked ({_name(holder)})"
        logger.info(f"{place}; waiting up to {self._expires_s:.0f} s for a sign of life")
        deadline = time.monotonic() + self._expires_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat_s / 2))
            now = self._read()
            if now is None:
                return None
            if now != found:
                raise self._taken(_parse(now))
        return found

    def _taken(self, holder: dict[str, Any]) -> LeaseHeld:
        return LeaseHeld(
            f"out={self._storage.uri}: another run is writing there ({_name(holder)}): wait until "
            "it has ended, or choose another out",
            holder,
        )

    def _keep(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                self._beat()
            except Exception as error:  # The next beat may succeed; `check` looks at the time.
                logger.warning("%s: could not renew the lock: %s", self._storage.uri, error)

    def _beat(self) -> None:
        with self._turn:
            if self._is_lost:
                return
            self._beats += 1
            content = self._content()
            if not self._storage.replace(self._path, content, self._current):
                found = self._read()
                # A write whose answer got lost may still have been done.
                if found is None or not self._is_ours(found):
                    self._is_lost = True
                    logger.error("%s: another run has taken over the lock", self._storage.uri)
                    self._on_loss()
                    return
                content = found
            self._current = content
            self._beaten_at = time.monotonic()

    def _content(self) -> bytes:
        # A process that waits counts the beats; the time is for people.
        fields = self._identity | {"beat": self._beats, "until": _clock(self._expires_s)}
        return (json.dumps(fields) + "\n").encode()

    def _is_ours(self, content: bytes) -> bool:
        return _parse(content).get("token") == self._identity["token"]

    def _read(self) -> bytes | None:
        try:
            return self._storage.read(self._path)
        except FileNotFoundError:
            return None


def _parse(content: bytes) -> dict[str, Any]:
    """A lock's fields; none when it is not readable, such as one that is just being written."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return (
        f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, "
        f"since {holder.get('since', '?')}"
    )


def _clock(ahead_s: float = 0.0) -> str:
    """The local time, or what it will be."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time.time() + ahead_s))


def _host_id() -> str:
    """Identifies this boot of the machine and its PID namespace; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _lives(holder: dict[str, Any]) -> bool | None:
    """Whether a lock's process runs; None if that cannot be seen from this machine."""
    if not _host_id() or holder.get("place") != _host_id():
        return None
    try:
        process = psutil.Process(int(holder["pid"]))
        is_same = abs(process.create_time() - float(holder["started"])) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
