"""What a running job shows to Prometheus: every metric of this project, by the means of Ray.

Ray's agent on each node serves what the processes of that node have set, at the node's port for
metrics, as `ray_` and the name. `infra/prometheus` fetches and judges it. Ray forgets a gauge that
was not set for 20 seconds, so each process sets its own again and again: a gauge goes some 20
seconds after its process, and a counter stays as long as the node. Whatever asks for an age is
therefore a gauge of a time, which a process that hangs or dies cannot keep young. In a process
without Ray nothing is set. Setting a value takes microseconds and waits for nothing.
"""

import atexit
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pipeline.ray_internals import export_interval_s, start_counter


class Metric:
    """One metric of this process; the values of its labels are given with each value."""

    kind = ""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._made: Any = None
        ALL.append(self)

    def _ray(self) -> Any:
        """Ray's metric; None in a process that is not connected to Ray."""
        ray: Any = sys.modules.get("ray")
        if ray is None or not getattr(ray, "is_initialized", bool)():
            return None
        if self._made is None:
            from ray.util import metrics

            self._made = getattr(metrics, self.kind)(self.name, self.text, self.labels)
        return self._made


class Gauge(Metric):
    """A value that goes up and down."""

    kind = "Gauge"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__(name, text, *labels)
        self._lock = threading.Lock()
        self._values: dict[frozenset[tuple[str, str]], float] = {}

    def set(self, value: float, **labels: str) -> None:
        """Sets the value for these labels; a number that is not finite leaves it as it is.

        Ray would leave such a series out.
        """
        if not math.isfinite(value) or not (metric := self._ray()):
            return
        with self._lock:
            metric.set(float(value), labels)
            if metric is self._made:
                self._values[frozenset(labels.items())] = float(value)
        if metric is self._made:
            _keep_gauges()

    def _set_again(self) -> None:
        with self._lock:
            for labels, value in self._values.items():
                self._made.set(value, dict(labels))

    @contextmanager
    def while_in(self, **labels: str) -> Iterator[None]:
        """Holds the value at 1 for the time of a block, and at 0 from then on."""
        self.set(1, **labels)
        try:
            yield
        finally:
            self.set(0, **labels)


@cache
def _keep_gauges() -> None:
    """Starts, once in a process, the thread that sets every gauge again while Ray is there."""

    def keep() -> None:
        # Twice for each look of Ray, which shows a value for two of them.
        while not ends.wait(export_interval_s() / 2):
            if not sys.modules["ray"].is_initialized():
                continue
            for metric in ALL:
                if isinstance(metric, Gauge):
                    metric._set_again()

    ends = threading.Event()
    atexit.register(ends.set)  # Ray's own code may not be called once Python is on its way out.
    threading.Thread(target=keep, name="gauges", daemon=True).start()


class Counter(Metric):
    """A number that only grows, from 0 in each process."""

    kind = "Counter"

    def start(self, **labels: str) -> None:
        """Shows the 0 from which the first increase is seen."""
        if metric := self._ray():
            start_counter(metric, labels)

    def add(self, value: float = 1.0, **labels: str) -> None:
        """Adds to it; what is not above 0 changes nothing."""
        if value > 0 and (metric := self._ray()):
            metric.inc(float(value), labels)


ALL: list[Metric] = []
"""Every metric, in the order of this file."""

# The driver of a training, and the controller of its workers.
TRAINING_ACTIVE = Gauge("lseg_training_active", "1 while a training is to go on.", "run")
WORKERS_WANTED = Gauge("lseg_training_workers_wanted", "Workers that a run is to have.", "run")
FAILURES = Counter(
    "lseg_training_failures_total", "Failures after which all workers start anew.", "run"
)

# Worker 0 of a training, for all of them.
WORKERS = Gauge("lseg_training_workers", "Workers that train.", "run")
STEP = Gauge("lseg_training_step", "Optimiser steps done.", "run")
STEPS_PLANNED = Gauge("lseg_training_steps_planned", "Optimiser steps of the whole run.", "run")
IMAGES = Counter("lseg_training_images_total", "Images that were trained on.", "run")
IMAGES_PER_SECOND = Gauge(
    "lseg_training_images_per_second", "Images in a second of training, without validation.", "run"
)
LOSS = Gauge("lseg_training_loss", "Loss of a step.", "run")
LEARNING_RATE = Gauge("lseg_training_learning_rate", "Learning rate of a step.", "run")
GRADIENT_NORM = Gauge(
    "lseg_training_gradient_norm", "Norm of a step's gradients before clipping.", "run"
)
BAD_SAMPLES = Counter(
    "lseg_training_bad_samples_total", "Samples of the stream that could not be read.", "run"
)
SKIPPED_STEPS = Counter(
    "lseg_training_skipped_steps_total", "Steps whose gradients were not finite.", "run"
)
LABEL_SPREAD_GAIN = Gauge(
    "lseg_training_label_spread_gain",
    "Share of the differences between labels that the regulariser lets through.",
    "run",
)
MIOU = Gauge("lseg_training_validation_miou", "Mean IoU of a validation, 0 to 1.", "run", "dataset")
VALIDATIONS_SINCE_BEST = Gauge(
    "lseg_training_validations_since_best", "Validations that were not the best one so far.", "run"
)
VALIDATION_SECONDS = Counter(
    "lseg_training_validation_seconds_total", "Seconds that the steps waited for validation.", "run"
)
CHECKPOINT_WAIT_SECONDS = Counter(
    "lseg_training_checkpoint_wait_seconds_total",
    "Seconds that the steps waited for checkpoints.",
    "run",
)
CHECKPOINT_TIME = Gauge(
    "lseg_training_checkpoint_timestamp_seconds",
    "Unix time at which a checkpoint was stored, or at which the workers started.",
    "run",
)
CHECKPOINT_INTERVAL = Gauge(
    "lseg_training_checkpoint_interval_seconds",
    "Seconds from one checkpoint to the next at the present speed.",
    "run",
)
CHECKPOINTS = Counter("lseg_training_checkpoints_total", "Checkpoints that were stored.", "run")
CHECKPOINTS_LEFT_OUT = Counter(
    "lseg_training_checkpoints_left_out_total",
    "Checkpoints that were not made because the storage or the local disk was behind or full.",
    "run",
)

# Each worker of a training.
BEAT_TIME = Gauge(
    "lseg_training_beat_timestamp_seconds",
    "Unix time of a worker's last step, or of the last image of its validation.",
    "run",
    "worker",
)
DATA_WAIT = Gauge(
    "lseg_training_data_wait_ratio",
    "Share of the time between two lines of log that a worker waited for data.",
    "run",
    "worker",
)

# Each loader of a training.
LOADED_BLOCKS = Counter("lseg_ingest_blocks_total", "Blocks that loaders have made.")
LOADED_IMAGES = Counter("lseg_ingest_images_total", "Images that loaders have decoded.")
LOADING_SECONDS = Counter("lseg_ingest_busy_seconds_total", "Seconds that loaders were at work.")

# The driver of any job that needs nodes.
MISSING = Gauge(
    "lseg_job_missing", "CPUs or GPUs that a job still waits for before it starts.", "kind"
)

# Where MLflow is written to.
MLFLOW_AWAY = Gauge(
    "lseg_tracking_away_seconds", "Seconds since MLflow took nothing; 0 while it does.", "run"
)

# The drivers of evaluations, predictions, conversions and checks.
ITEMS_DONE = Counter("lseg_job_items_total", "Items of a long job that are done.", "unit")
ITEMS_PLANNED = Gauge("lseg_job_items_planned", "Items of a long job.", "unit")
ITEMS_LEFT = Gauge("lseg_job_items_left", "Items of a long job that are still to do.", "unit")
EVALUATION_ACTIVE = Gauge("lseg_evaluation_active", "1 while an evaluation is at work.", "protocol")

# The driver of a re-training.
RETRAINING_ACTIVE = Gauge("lseg_retraining_active", "1 while a re-training is at work.", "model")
RETRAININGS = Counter(
    "lseg_retraining_outcomes_total", "Calls of the re-training by outcome.", "model", "outcome"
)

# The process that takes the calls of a service, and each of its replicas.
SERVED_CALLS = Counter("lseg_serve_calls_total", "Calls of a service by their status.", "status")
SERVED_IMAGES = Counter("lseg_serve_images_total", "Images that went through a served network.")
SERVED_BATCHES = Counter("lseg_serve_batches_total", "Batches in which they went.")
SERVED_SECONDS = Counter("lseg_serve_busy_seconds_total", "Seconds that the network was at work.")
SERVED_MODEL_CHANGES = Counter(
    "lseg_serve_model_changes_total", "Times that a replica took another version of its alias."
)
SERVED_MODEL_FAILURES = Counter(
    "lseg_serve_model_failures_total", "Looks at an alias that failed, or loads of its version."
)
SERVED_MODEL_BEHIND = Gauge(
    "lseg_serve_model_behind",
    "1 while the alias leads to a version that could not be loaded, and another one answers.",
)
