"""What of a training's metrics in MLflow Prometheus sees too, under which name."""

import re
from collections.abc import Mapping

from pipeline import monitoring
from pipeline.training.config import TrainMixConfig

GAUGES = {
    "train/loss": monitoring.LOSS,
    "train/lr": monitoring.LEARNING_RATE,
    "train/grad_norm": monitoring.GRADIENT_NORM,
    "train/label_spread_gain": monitoring.LABEL_SPREAD_GAIN,
}
TOTALS = {
    "train/bad_samples": monitoring.BAD_SAMPLES,
    "train/skipped_steps": monitoring.SKIPPED_STEPS,
}
"""Metrics that MLflow gets as a total since the workers started."""
SECONDS = {
    "train/checkpoint_s": monitoring.CHECKPOINT_WAIT_SECONDS,
    "train/validation_s": monitoring.VALIDATION_SECONDS,
}
"""Metrics that MLflow gets as seconds since the last line of log."""
_MIOU = re.compile(r"val/(\w+)/miou|val_miou/(\w+)")


class Published:
    """Shows the metrics of one run to Prometheus as they are logged; made by worker 0."""

    def __init__(self, config: TrainMixConfig) -> None:
        self._run, self._judge = config.run.name, config.train.keep_best
        self._totals = dict.fromkeys(TOTALS, 0.0)
        self._best, self._since_best = -1.0, 0
        for counter in (*TOTALS.values(), *SECONDS.values()):
            counter.start(run=self._run)

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Sets what Prometheus sees of some metrics, by their names in MLflow."""
        for name, value in metrics.items():
            if name in GAUGES:
                GAUGES[name].set(value, run=self._run)
            elif name in TOTALS:
                TOTALS[name].add(value - self._totals[name], run=self._run)
                self._totals[name] = value
            elif name in SECONDS:
                SECONDS[name].add(value, run=self._run)
            elif name == "val/miou":
                monitoring.MIOU.set(value, run=self._run, dataset="(mean)")
            elif found := _MIOU.fullmatch(name):
                monitoring.MIOU.set(value, run=self._run, dataset=found[1] or found[2])
            if name == self._judge:
                self._since_best = 0 if value > self._best else self._since_best + 1
                self._best = max(self._best, value)
                monitoring.VALIDATIONS_SINCE_BEST.set(self._since_best, run=self._run)
