"""The trials' runs in MLflow: their curves, their judgement, and the view of the UI on them."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipeline.ray_internals import SAVED_VIEW_TAG
from pipeline.sweep.comparison import Comparison
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.diagnosis import LOSS, Diagnosis, History
from pipeline.sweep.results import Result
from pipeline.sweep.trials import setting_tags, short_names
from pipeline.tracking.config import server_uri
from pipeline.tracking.experiment import view
from pipeline.tracking.limits import name_of_metric
from pipeline.tracking.mlflow_run import client_of

logger = logging.getLogger(__name__)

OUTCOME, WORDS = "sweep.outcome", "sweep.diagnosis"


class TrialRuns:
    """The trials' MLflow runs below the sweep's own, read and marked; nothing without MLflow."""

    def __init__(self, config: SweepConfig, parent: str) -> None:
        self._config, self._parent = config, parent
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, Any] = {}
        if not parent:
            return
        try:
            client = client_of(server_uri(config.tracking))
            self._experiment = client.get_run(parent).info.experiment_id
            # As many as one answer of MLflow can hold, which no sweep reaches.
            for run in client.search_runs([self._experiment], self._filter, max_results=50_000):
                # The newest of a name counts, which comes first.
                self._runs.setdefault(run.data.tags.get("sweep.trial", ""), run)
            self._client = client
        except Exception as error:  # The comparison does without curves.
            logger.warning("MLflow does not answer, so there are no curves: %s", error)

    @property
    def _filter(self) -> str:
        return f"tags.`mlflow.parentRunId` = '{self._parent}'"

    def run_id(self, trial: str) -> str:
        """The run of a trial, or an empty string."""
        return self._runs[trial].info.run_id if trial in self._runs else ""

    def histories(self, run_id: str, metrics: Sequence[str]) -> dict[str, History]:
        """Histories of metrics, those that there are."""
        if not run_id:
            return {}
        found = {}
        for metric in dict.fromkeys(metrics):
            with suppress(Exception):
                # The runs of older versions have the plain names.
                names = dict.fromkeys((metric, name_of_metric(metric)))
                points = [p for n in names for p in self._client.get_metric_history(run_id, n)]
                # A resumed run has logged some steps twice; the later one counts.
                by_step = {p.step: p.value for p in sorted(points, key=lambda p: p.timestamp)}
                history = [point for point in sorted(by_step.items()) if math.isfinite(point[1])]
                found |= {metric: history} if history else {}
        return found

    def mark(self, run_id: str, diagnosis: Diagnosis, result: Result) -> None:
        """Writes the judgement to the trial's run, where the UI shows it as columns."""
        if not run_id:
            return
        metric, run = self._config.metric, self._runs[result.name]
        # Their short names may be others since an earlier start, which varied less.
        tags = setting_tags(result.params, result.seed, [*self._config.varied, *result.params])
        with suppress(Exception):
            for key, value in tags.items():
                if run.data.tags.get(key) != value:
                    self._client.set_tag(run_id, key, value)
            self._client.set_tag(run_id, OUTCOME, diagnosis.outcome)
            self._client.set_tag(run_id, WORDS, diagnosis.words)
            if result.status == "stopped":  # Its process was ended before it could say so.
                self._client.set_terminated(run_id, "KILLED")
            # The evaluation logs its figures below its protocol's name, which is not the metric's.
            shown = name_of_metric(metric)
            if not math.isnan(value := result.value(metric)) and shown not in run.data.metrics:
                self._client.log_metric(run_id, shown, value)

    def save_view(self, comparison: Comparison) -> str:
        """Saves the view of the trials, the best first, with what is varied and what came of it.

        Returns:
            The query that opens it; an empty string without MLflow.
        """
        if self._client is None:
            return ""
        # Not the parameters of these names, which a column is too narrow for.
        short = short_names(
            [*self._config.varied, *(key for one in comparison.trials for key in one.result.params)]
        )
        order = f"metrics.`{name_of_metric(comparison.metric)}`"
        columns = [order, f"metrics.`{LOSS}`", "attributes.`Duration`"]
        columns += [f"tags.`sweep.{name}`" for name in (*short.values(), "seed")]
        columns += [f"tags.`{OUTCOME}`", f"tags.`{WORDS}`"]
        state = {
            "searchFilter": self._filter,
            "orderByKey": order,
            "orderByAsc": False,
            "selectedColumns": columns,
        }
        key, value = f"sweep-{self._parent[:12]}", view(f"sweep {comparison.name}", state)
        try:
            self._client.set_experiment_tag(self._experiment, SAVED_VIEW_TAG + key, value)
        except Exception as error:  # Too long for the server, or it does not answer any more.
            logger.warning("MLflow did not take the view of the trials: %s", error)
            return ""
        return f"viewStateShareKey={key}"
