"""Sends what an outage left in journals, to the runs that their lines name."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import Timeout

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from pipeline.tracking.config import TrackingConfig, server_uri
from pipeline.tracking.delivery import Delivery, ReplayCounts
from pipeline.tracking.journal import Journal
from pipeline.tracking.redaction import reason_of
from pipeline.tracking.refusals import MlflowRefused

logger = logging.getLogger(__name__)

_PATTERN = "tracking*.jsonl"
_REFUSED = ".refused.jsonl"


class JournalInUse(UserError):
    """A training that still runs holds the journal, and sends it by itself."""


def replay_all(place: str, config: TrackingConfig) -> Iterator[tuple[str, ReplayCounts]]:
    """Sends all journals of a place, one after the other; see `replay`.

    Args:
        place: A journal, or a folder with some at any depth, such as a run's storage; local or
            `s3://`. What a stored file still holds afterwards is written back.
        config: Where to.

    Yields:
        Where the file is, and what became of it.

    Raises:
        UserError: There is none, it is in use by a running training (of those in a folder, such
            are left alone), or there is no tracking URI.
    """
    if "://" not in place:
        path = Path(place)
        found = [path] if path.is_file() else sorted(path.rglob(_PATTERN))
        found = [p for p in found if p == path or not p.name.endswith(_REFUSED)]
        if not found:
            raise _nothing(place)
        for journal in found:
            try:
                yield str(journal), replay(journal, config)
            except JournalInUse as error:
                if journal == path:
                    raise
                logger.warning("%s", error)
        return
    root, _, name = place.rpartition("/")
    if not name.endswith(".jsonl"):
        root, name = place, ""
    storage = open_storage(root)
    paths = [name] if name else [entry.path for entry in storage.list() if _is_journal(entry.path)]
    paths = [path for path in paths if storage.exists(path)]
    if not paths:
        raise _nothing(place)
    for stored in paths:
        yield f"{storage.uri}/{stored}", _replay_stored(storage, stored, config)


def _is_journal(path: str) -> bool:
    return PurePosixPath(path).match(_PATTERN) and not path.endswith(_REFUSED)


def _nothing(place: str) -> UserError:
    return UserError(
        f"replay={place}: must be a spill file, or a folder that holds some: give what training "
        "printed, or the run's storage; a file that was sent completely is removed"
    )


def _replay_stored(storage: Storage, path: str, config: TrackingConfig) -> ReplayCounts:
    with tempfile.TemporaryDirectory(prefix="lseg-replay-") as folder:
        local = Path(folder) / PurePosixPath(path).name
        before = storage.read(path)
        local.write_bytes(before)
        with _opened(local) as journal:
            counts = _send(journal, config)
            rest, refused = journal.rest(), journal.beside(_REFUSED)
        if refused.exists():
            target = str(PurePosixPath(path).with_name(refused.name))
            earlier = storage.read(target) if storage.exists(target) else b""
            storage.write(target, earlier + refused.read_bytes())
        # A training that still runs may have stored more in the meantime, or have sent it all.
        if rest:
            storage.replace(path, rest, before)
        elif storage.exists(path) and storage.read(path) == before:
            storage.delete(path)
    return counts


def replay(path: Path, config: TrackingConfig) -> ReplayCounts:
    """Sends a journal to MLflow, in order and with the original times.

    What was sent leaves the file; an empty file is removed. Sending twice does no harm.

    Args:
        path: The file that training named.
        config: Where to; the experiment is the one that each line names.

    Raises:
        FileNotFoundError: There is no such file.
        JournalInUse: A running training has it.
        UserError: There is no tracking URI.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such journal")
    with _opened(path) as journal:
        return _send(journal, config)


@contextmanager
def _opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        journal.open()
        yield journal
    except Timeout as error:
        raise JournalInUse(
            f"replay={path}: must not be in use: its training still runs and sends it by "
            "itself; wait for its end"
        ) from error
    finally:
        journal.close()


def _send(journal: Journal, config: TrackingConfig) -> ReplayCounts:
    delivery = Delivery(journal, server_uri(config), config.artifacts)
    counts = delivery.counts
    try:
        delivery.send()
    except Exception as error:
        counts.refusal = isinstance(error, MlflowRefused)
        counts.reason = str(error) if counts.refusal else reason_of(error)
    counts.left = journal.rest().count(b"\n")
    counts.runs = {run.identity.run_name: run.ui_hint() for run in delivery.runs.values()}
    return counts
