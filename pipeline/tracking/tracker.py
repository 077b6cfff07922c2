"""MLflow tracking that never slows and never stops training.

`Tracker` appends everything to a journal beside the checkpoints, at once and with the time of the
call; a thread of its own finds or creates the run and sends the journal in large calls. What the
server does not take stays there until it answers: to this process, to the next one that resumes
the run, or to `jobs/track.py --replay`.
"""

import atexit
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from pipeline.tracking.config import TrackingConfig, server_uri
from pipeline.tracking.journal import Journal
from pipeline.tracking.journal_copy import JournalCopy
from pipeline.tracking.limits import (
    MAX_ENTITIES,
    MAX_PARAM_CHARS,
    MAX_PICTURE_BYTES,
    MAX_TEXTS,
)
from pipeline.tracking.mlflow_run import MlflowRun
from pipeline.tracking.page_records import (
    InputDataset,
    LoggedCheckpoint,
    picture_path,
    picture_text,
    table_text,
)
from pipeline.tracking.records import Kind, Record, RunIdentity, now_ms
from pipeline.tracking.redaction import flatten_config, redact_text, redact_tree, redact_values
from pipeline.tracking.sender import Sender, Status
from pipeline.tracking.system import SystemWatch

__all__ = ["Tracker", "TrackingConfig"]

logger = logging.getLogger(__name__)


class Tracker:
    """Records one run; made by `start`, ended by `close`.

    The `log_*` and `set_tags` methods return in microseconds, raise nothing and may be called from
    any thread.
    """

    def __init__(self, run: MlflowRun, sender: Sender) -> None:
        self._run = run
        self._sender = sender
        self._on_metrics: Callable[[Mapping[str, float]], object] = len
        self._system: SystemWatch | None = None
        self._step = 0

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        run_name: str,
        spill_path: Path | None,
        run_id: str | None = None,
        tags: Mapping[str, Any] | None = None,
        params: Any = None,
        parent_run_id: str | None = None,
        copy_to: str = "",
        is_guest: bool = False,
        on_metrics: Callable[[Mapping[str, float]], object] = len,
    ) -> "Tracker":
        """Starts recording; returns at once whether or not a server answers.

        Args:
            config: Where to.
            run_name: Name in the UI.
            spill_path: Local file of the journal, removed when all of it was sent; a small
                `.run.json` beside it remembers the run. A later start with the same path,
                experiment and name continues the same MLflow run, and sends what the file holds.
                None: at most `queue_size` records survive an outage, in memory.
            run_id: MLflow run to continue, if the caller knows it.
            tags: Tags of the run; secrets are left out.
            params: Parameters, flat or nested, mapping or dataclass; see `flatten_config`.
            parent_run_id: MLflow run to nest this one in.
            copy_to: Folder of a storage (`s3://...`) for copies of the journal and of the run's
                identity, where `spill_path` is on a node that may vanish.
            is_guest: The run is another process's, which may still be at work: its status and the
                time of its end stay what they are, whatever this process comes to.
            on_metrics: Called with the metrics of each call of `log_metrics`.

        Raises:
            UserError: There is no usable tracking URI.
        """
        identity = RunIdentity(
            experiment=config.experiment,
            run_name=run_name,
            run_key=uuid4().hex,
            run_id=run_id or "",
            parent_run_id=parent_run_id or "",
        )
        run = MlflowRun(server_uri(config), identity, config.artifacts, is_guest)
        path = spill_path.absolute() if spill_path else None
        copy = JournalCopy(copy_to, path.name) if copy_to and path else None
        tracker = cls(run, Sender(run, Journal(path, identity, config.queue_size), copy))
        tracker._on_metrics = on_metrics
        tracker.set_tags(tags or {})
        tracker.log_params(params or {})
        # A process that ends without `close` still writes what it has.
        atexit.register(tracker.close, "KILLED", 2.0)
        tracker._sender.start()
        return tracker

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until a server has answered."""
        return self._run.identity.run_id if self._sender.opened.is_set() else None

    def wait_for_run(self, timeout_s: float) -> str | None:
        """Waits until the run is known; for drivers, not for the training loop."""
        self._sender.opened.wait(timeout_s)
        return self.run_id

    def ui_hint(self) -> str:
        """The URL of the run, or the command that starts a UI for it."""
        return self._run.ui_hint()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics, by slash-separated name, of one optimiser step."""
        self._step = max(self._step, step)
        values: dict[str, float] = {}
        for key, value in metrics.items():
            try:
                values[key] = float(value)
            except (TypeError, ValueError):
                logger.warning("metric %s=%r is not a number: left out", key, value)
        self._on_metrics(values)
        self._put_parts("metrics", values, MAX_ENTITIES, step=step)

    def log_params(self, params: Any) -> None:
        """Logs parameters; nested ones get dotted keys, secrets are left out."""
        self._put_parts("params", flatten_config(params), MAX_TEXTS)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Logs tags; secrets are left out."""
        self._put_parts("tags", redact_values(tags, MAX_PARAM_CHARS), MAX_TEXTS)

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Logs a local file or folder, which must stay where it is until it is sent.

        Its content is not searched for secrets; `artifact_path` is the folder in the run.
        """
        self._put("artifact", path=str(Path(path).absolute()), artifact_path=artifact_path)

    def log_text(self, text: str, artifact_path: str) -> None:
        """Logs a text as the file `artifact_path` of the run; credentials are masked."""
        self._put("text", text=redact_text(text), artifact_path=artifact_path)

    def log_dict(self, tree: Any, artifact_path: str) -> None:
        """Logs nested values as a YAML (`.yaml`, `.yml`) or JSON file, without secrets."""
        clean = redact_tree(tree)
        if artifact_path.endswith((".yaml", ".yml")):
            text = yaml.safe_dump(clean, sort_keys=False, allow_unicode=True)
        else:
            text = json.dumps(clean, indent=2, ensure_ascii=False)
        self.log_text(text, artifact_path)

    def log_inputs(self, datasets: Sequence[InputDataset]) -> None:
        """Logs which datasets the run reads."""
        for dataset in datasets:
            self._put("inputs", values=dataset.values())

    def log_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], artifact_path: str
    ) -> None:
        """Logs a table as the file `artifact_path` (`.json`), in place of an earlier one."""
        self._put("table", text=table_text(columns, rows), artifact_path=artifact_path)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Logs an image of one step; the page draws those of one name as a chart with a slider.

        One of more than `MAX_PICTURE_BYTES` is left out: the journal keeps it until it is sent.
        """
        if len(png) > MAX_PICTURE_BYTES:
            logger.warning("picture %s has %d bytes: left out", name, len(png))
            return
        path = picture_path(name, step, now_ms())
        self._put("picture", step=step, text=picture_text(png), artifact_path=path)

    def log_model(self, model: LoggedCheckpoint) -> None:
        """Logs a checkpoint as a model of the run, in place of those before that it beats."""
        self._put("model", step=model.step, text=model.text())

    def watch_system(self, every_s: float) -> None:
        """Starts to log the load of this node every so many seconds, until `close`."""
        if not every_s or self._system is not None:
            return
        try:
            self._system = SystemWatch(lambda values: self.log_metrics(values, self._step), every_s)
        except Exception as error:  # A container may hide what is measured.
            logger.warning("no system metrics: %s", error)

    def close(self, status: Status = "FINISHED", timeout_s: float = 10.0) -> None:
        """Sends what is left; what cannot be sent in `timeout_s` stays in the journal.

        With the status RUNNING another process is to go on with the run.
        """
        atexit.unregister(self.close)
        if self._system is not None:
            self._system.close()
            self._system = None
        self._sender.stop(status, timeout_s)

    def _put_parts(
        self, kind: Kind, values: Mapping[str, Any], max_values: int, step: int = 0
    ) -> None:
        items = list(values.items())
        for first in range(0, len(items), max_values):
            self._put(kind, step=step, values=dict(items[first : first + max_values]))

    def _put(self, kind: Kind, **fields: Any) -> None:
        self._sender.put(Record(kind=kind, time_ms=now_ms(), **fields))
