"""Keeps two trainings of one name and storage apart: the second is refused while the first lives.

Both would write the same checkpoints, each delete the other's, and end in a confusion that no
message explains. The lock lies in the run's folder, so it holds between machines; see
`pipeline.storage.lease` for how one whose holder died is taken over.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.checkpoints.environment import ray_job_id
from pipeline.storage.lease import Lease, LeaseHeld
from pipeline.storage.open import open_storage
from pipeline.training.config import RunConfig

LOCK_NAME = "train.lock"


class RunHeld(LeaseHeld):
    """Another process trains the run."""


@contextmanager
def held(run: RunConfig) -> Iterator[Lease]:
    """Holds a run while the `with` block lasts.

    Raises:
        RunHeld: Another process trains it.
    """
    lease = Lease(open_storage(run.storage), f"{run.name}/{LOCK_NAME}", note=ray_job_id() or "")
    try:
        lease.__enter__()
    except LeaseHeld as error:
        raise RunHeld(
            f"run.name={run.name}: is being trained in {run.storage} by {error.by}: "
            "wait until that one has ended, or give this run another name",
            error.holder,
        ) from None
    try:
        yield lease
    finally:
        lease.__exit__()
