"""One sweep from its configuration to its comparison."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from pipeline.checkpoints.origin import tags_of_this_process
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.lease import Lease
from pipeline.storage.open import open_storage
from pipeline.storage.places import local_state_dir, resolve_location
from pipeline.sweep import results
from pipeline.sweep.comparison import Comparison, Judged, compare
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.diagnosis import HISTORIES, Outcome, diagnose
from pipeline.sweep.plots import draw_all
from pipeline.sweep.results import Result
from pipeline.sweep.runner import Builders, missing_metric, run_trials
from pipeline.sweep.search import check_stopping
from pipeline.sweep.settings import check_settings
from pipeline.sweep.trial_runs import TrialRuns
from pipeline.sweep.trials import Trial, examples, grid_trials
from pipeline.tracking.preflight import check_server
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.preflight import check_model

logger = logging.getLogger(__name__)

LOCK_NAME = "sweep.lock"
REPORT = "report"
_WAIT_S = 30.0


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind."""

    comparison: Comparison
    folder: str
    """The folder of the comparison: a local path or an s3:// address."""
    ui_hint: str
    """How to see it in MLflow."""
    seconds: float


def run_sweep(
    config: SweepConfig,
    build: Builders,
    start_ray: Callable[[float, int, float], None] | None = None,
) -> SweepOutcome:
    """Runs the trials that have no result yet, and compares all.

    `config` has absolute paths. `start_ray` is called with the numbers of logical CPUs and of GPUs
    once all is checked; it is None where Ray is running.

    Raises:
        UserError: Settings do not fit each other or what an earlier start left, or another
            process runs the same sweep.
    """
    began = time.monotonic()
    example = check_trials(config, build)
    trials, storage = grid_trials(config), open_storage(config.root)
    check_server(config.tracking)
    with Lease(storage, LOCK_NAME), ExitStack() as stack:
        check_settings(config, trials, build.training, storage)
        if start_ray is not None:
            one = example.logical_cpus, example.fewest_gpus, example.least_cpus
            cpus, gpus, least_cpus = (max(1, config.max_concurrent) * number for number in one)
            start_ray(cpus, int(gpus), least_cpus)
        # Removed after the tracker has sent from it, or given up.
        scratch = stack.enter_context(
            TemporaryDirectory(prefix="lseg-sweep-report-", ignore_cleanup_errors=True)
        )
        tracker = stack.enter_context(_tracker(config))
        parent = tracker.wait_for_run(_WAIT_S) or ""
        if not parent:
            logger.warning("MLflow does not answer: the trials will not be nested in the sweep")
        run_trials(config, trials, build, storage, parent)
        runs = TrialRuns(config, parent)
        comparison = _compare(config, trials, storage, runs)
        _report(comparison, tracker, Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            storage.upload(f"{REPORT}/{path.name}", path)
        page, view = tracker.ui_hint(), runs.save_view(comparison)
        trials_page = f"{page.rsplit('/runs/', 1)[0]}/runs?{view}"
        hint = f"comparison: {page}" + (f"\ntrials:     {trials_page}" if view else "")
        tracker.close("FINISHED", 60.0)
    return SweepOutcome(comparison, f"{config.root}/{REPORT}", hint, time.monotonic() - began)


def plan(config: SweepConfig, build: Builders) -> list[str]:
    """What the sweep would do, a trial a line, after the checks that `run_sweep` begins with.

    Raises:
        UserError: Settings do not fit each other or what an earlier start left.
    """
    example = check_trials(config, build)
    trials, storage = grid_trials(config), open_storage(config.root)
    check_settings(config, trials, build.training, storage, repair=False)
    found = results.read_all(storage)
    names = [trial.name for trial in trials] or list(found)
    done = sum(found[name].is_done for name in names if name in found)
    gpus = example.cluster.num_workers * example.cluster.use_gpu
    lines = [
        f"{len(trials) or config.num_trials} trials in {config.root}, {done} of them done",
        f"each holds {example.logical_cpus:g} logical CPUs" + (f", {gpus} GPUs" if gpus else ""),
    ]
    if not trials:
        return [*lines, *(f"{key}: {values}" for key, values in config.space.items())]
    for trial in trials:
        status = found[trial.name].status if trial.name in found else "waits"
        settings = ", ".join(f"{key}={value}" for key, value in trial.params.items())
        lines.append(f"{status:8} {settings}, seed {trial.seed}")
    return lines


def check_trials(config: SweepConfig, build: Builders) -> TrainMixConfig:
    """Builds each trial's configuration and network before any is trained; returns the first.

    Of a search, those of the corners of its space. What is returned is a training, to size Ray by.

    Raises:
        UserError: One cannot work; names it.
    """
    checked, trainings = set(), []
    for trial in examples(config):
        try:
            training = build.training(trial)
            if not training.data.shards:
                raise UserError(
                    "overrides.data.shards: is not set, and no trial can train without: give the "
                    "folder that prepare_shards.py wrote, in the sweep file or by "
                    "`--overrides.data.shards DIR`"
                )
            trainings.append(training)
            check_stopping(config, training)
            if config.evaluate:
                try:
                    build.evaluation(training, "checkpoint")
                except ValueError as error:
                    raise UserError(f"evaluate.{error}") from None
            elif training.train.test_fold is not None:
                raise UserError(
                    f"metric={config.metric}: a training without a test fold's classes has no "
                    "validation: set evaluate, and compare eval/miou"
                )
            if str(training.model) not in checked:
                check_model(training.model)
                checked.add(str(training.model))
        except ValueError as error:
            raise UserError(f"trial {trial.params}: {error}") from None
    return trainings[0]


def _tracker(config: SweepConfig) -> Tracker:
    folder = local_state_dir("storage", config.root, config.root)
    params = {"sweep": {k: v for k, v in asdict(config).items() if k != "tracking"}}
    return Tracker.start(
        config.tracking,
        run_name=config.name,
        spill_path=folder / f"tracking-sweep-{config.name}.jsonl",
        tags={"sweep": config.name, "sweep.kind": "comparison"} | tags_of_this_process(),
        params=params,
    )


def _compare(
    config: SweepConfig, trials: Sequence[Trial], storage: Storage, runs: TrialRuns
) -> Comparison:
    """Judges every trial by its result and its curves in MLflow."""
    found = results.read_all(storage)
    ended = {name: result for name, result in sorted(found.items()) if result.status != "running"}
    if trials:
        failed = [
            Result(t.name, t.params, t.seed, "failed", error="it left no result") for t in trials
        ]
        ended = {result.name: ended.get(result.name, result) for result in failed}
    finished = [result for result in ended.values() if result.status == "finished"]
    if finished and all(math.isnan(result.value(config.metric)) for result in finished):
        raise missing_metric(config, list(finished[0].metrics))
    judged = []
    for name, result in ended.items():
        run_id = runs.run_id(name)
        histories = runs.histories(run_id, (*HISTORIES, config.metric))
        diagnosis = diagnose(result, histories)
        runs.mark(run_id, diagnosis, result)
        judged.append(Judged(result, diagnosis, histories, run_id))
    return compare(config.name, config.metric, judged, config.average_over)


def _report(comparison: Comparison, tracker: Tracker, folder: Path) -> None:
    """Writes the comparison's files, and gives them to the sweep's own run."""
    texts = {
        "comparison.md": comparison.markdown(),
        "trials.csv": comparison.csv(),
        "comparison.json": comparison.json(),
        "verdict.txt": comparison.verdict + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    draw_all(comparison, folder)
    for path in sorted(folder.iterdir()):
        tracker.log_artifact(path, "comparison")
    outcomes = [judged.diagnosis.outcome for judged in comparison.trials]
    # Those of none too: an earlier start may have logged some.
    figures = {
        f"sweep/num_{word.replace(' ', '_')}": float(outcomes.count(word))
        for word in get_args(Outcome)
    }
    best = next((row for row in comparison.rows if row.values), None)
    if best is not None:
        figures[f"best/{comparison.metric}"] = best.mean
    tracker.log_metrics(figures, 0)
    tags = {"mlflow.note.content": texts["comparison.md"], "sweep.verdict": comparison.verdict}
    tracker.set_tags(tags)


def absolute(config: SweepConfig) -> SweepConfig:
    """Makes local paths absolute, and the tracking URI the same in every process.

    Raises:
        UserError: `storage` is relative to a working folder that Ray uploaded for a job, or cannot
            be written to.
    """
    storage = resolve_location("storage", config.storage)
    folder = local_state_dir("storage", config.storage, storage)
    return replace(config, storage=storage, tracking=config.tracking.resolved(folder))
