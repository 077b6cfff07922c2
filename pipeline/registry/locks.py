"""The two locks of a model: one re-training at a time, and one change of its champion at a time.

They are objects in the run storage (see `pipeline.storage.lease`): created with If-None-Match,
renewed with If-Match by their holder, and taken over with If-Match when the holder's process is
known to be gone or no process renewed them for `expires_s`. The object store must refuse such
writes when their condition does not hold (AWS S3, SeaweedFS, Ceph do). One that does not know them
and says so (501) is used all the same, but there two calls within the same moment could both
succeed.

The second lock lets a rollback through while a training of hours holds the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.checkpoints.environment import ray_job_id
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.lease import Lease, LeaseHeld, LeaseLost

RETRAIN_LOCK, CHAMPION_LOCK = "retrain.lock", "champion.lock"

LOCKED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later."""


@dataclass(frozen=True, kw_only=True)
class LockConfig:
    """The lock that keeps two re-trainings of one model apart."""

    expires_s: float = 120.0
    """A lock that its holder has not renewed for so long may be taken over."""
    beat_s: float = 10.0
    """Seconds between two renewals."""

    def __post_init__(self) -> None:
        if not 0 < self.beat_s <= self.expires_s / 4:
            raise UserError(
                f"lock.beat_s={self.beat_s:g}: must be above 0 and at most a quarter of "
                f"lock.expires_s={self.expires_s:g}, so that a late renewal loses no lock"
            )


class RetrainLocked(UserError):
    """Another process holds the lock, or has taken it over."""

    exit_code = LOCKED_EXIT_CODE


@contextmanager
def locked(storage: Storage, path: str, config: LockConfig, what: str) -> Iterator[Lease]:
    """Holds one of the locks while the `with` block lasts.

    Args:
        storage: Storage of the model's state.
        path: RETRAIN_LOCK or CHAMPION_LOCK.
        config: The lock's times, the same for all callers.
        what: What is locked, for messages.

    Raises:
        RetrainLocked: Another process holds it, or took it over in the meantime.
    """
    lease = Lease(storage, path, config.expires_s, config.beat_s, note=ray_job_id())
    try:
        with lease:
            yield lease
    except LeaseHeld as error:
        raise RetrainLocked(
            f"{storage.uri}/{path}: {what} is locked by {error.by}: it is at work; call again later"
        ) from None
    except LeaseLost as error:
        raise RetrainLocked(
            f"{storage.uri}/{path}: this process was silent for too long, and another one has "
            f"taken over: nothing was promoted here ({error})"
        ) from None
